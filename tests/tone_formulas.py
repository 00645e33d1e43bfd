"""PQ, HLG and BT.2390 in float64, as the standards print them: the reference of tone mapping."""

import numpy as np

TRANSFERS = {"pq": 16, "hlg": 18}  # AVColorTransferCharacteristic
ZSCALE_TRANSFERS = {"pq": "smpte2084", "hlg": "arib-std-b67"}


def pq_of(light):
    """The inverse EOTF as SMPTE ST 2084 prints it: cd/m2 to a signal."""
    m1, m2 = 2610 / 4096 / 4, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    y = (np.asarray(light, float) / 10000) ** m1
    return ((c1 + c2 * y) / (1 + c3 * y)) ** m2


def light_of(signal):
    """The EOTF as SMPTE ST 2084 prints it: a signal to cd/m2."""
    m1, m2 = 2610 / 4096 / 4, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    n = np.asarray(signal, float) ** (1 / m2)
    return 10000 * (np.maximum(n - c1, 0) / (c2 - c3 * n)) ** (1 / m1)


def hlg_of(scene):
    """The OETF of ARIB STD-B67 as ITU-R BT.2100 prints it: the scene's light to a signal."""
    scene = np.asarray(scene, float)
    log = np.log(np.maximum(12 * scene - 0.28466892, 1e-9))
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * log + 0.55991073)


def eetf(light):
    """ITU-R BT.2390-10, 5.4.1, steps 1 to 5, one number at a time: cd/m2 to cd/m2."""
    black, white, smallest, largest = pq_of(0), pq_of(1000), pq_of(0), pq_of(203)
    min_lum, max_lum = (smallest - black) / (white - black), (largest - black) / (white - black)
    knee = 1.5 * max_lum - 0.5
    e1 = min((pq_of(light) - black) / (white - black), 1)
    t = (e1 - knee) / (1 - knee)
    p = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee)
    p += (-2 * t**3 + 3 * t**2) * max_lum
    e2 = e1 if e1 < knee else p
    return light_of((e2 + min_lum * (1 - e2) ** 4) * (white - black) + black)


def to_xyz(red, green, blue, white=(0.3127, 0.3290)):
    """Linear RGB to XYZ of primaries given as CIE xy: SMPTE RP 177."""
    p = np.array([[x, y, 1 - x - y] for x, y in (red, green, blue)]).T
    w = np.array([white[0], white[1], 1 - sum(white)]) / white[1]
    return p @ np.diag(np.linalg.inv(p) @ w)


XYZ = {
    1: to_xyz((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    9: to_xyz((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    12: to_xyz((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}


def tone_map_by_the_book(signal, *, transfer, primaries):
    """``(..., 3)`` signals in [0, 1] to ``(..., 3)`` float64 in [0, 255]."""
    if transfer == "pq":
        light = light_of(signal)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
        light = 1000 * (scene @ XYZ[primaries][1])[..., None] ** 0.2 * scene
    brightest = light.max(-1)
    mapped = np.array([eetf(n) for n in brightest.ravel()]).reshape(brightest.shape)
    light = light * (mapped / np.maximum(brightest, 1e-12))[..., None] / 203
    light = light @ (np.linalg.inv(XYZ[1]) @ XYZ[primaries]).T
    return 255 * light.clip(0, 1) ** (1 / 2.4)
