"""Tone map HDR pictures (PQ and HLG) to the SDR of BT.709 displays.

The chain, per pixel, with light in cd/m2:

1. Light as a display would show it. PQ: the EOTF of SMPTE ST 2084. HLG: the inverse OETF and the
   OOTF of ARIB STD-B67 / ITU-R BT.2100 for a display of 1000 cd/m2 (gamma 1.2, on luminance).
2. The tone curve of ITU-R BT.2390 section 5.4.1 (EETF), from a source of 0 to 1000 cd/m2 to a
   target of 0 to 203 cd/m2. 203 is the reference white of ITU-R BT.2408 and becomes SDR white. It
   is computed of the largest of R, G and B, and scales the three alike, which keeps the hue. Up to
   87 cd/m2 nothing is changed; 203 become 159 (230 of 255), 1000 and all above become 203 (255).
3. BT.2020 primaries (or those that the picture is tagged with) to BT.709. What lies outside is
   clipped, a channel at a time.
4. The inverse of the display's curve, ITU-R BT.1886 with black at 0: a power of 1 / 2.4. Not the
   camera's (the OETF of BT.709), because step 1 ended with light of a display; zscale's
   `transfer=bt709` does the same.

The source's peak is fixed and the file's mastering metadata are not used: a video cannot flicker
where they change, and its pixels do not depend on where decoding began.
"""

from __future__ import annotations

import functools

import numpy as np

SOURCE_PEAK = 1000.0
"""cd/m2. Brighter is as bright as this: most HDR is graded up to here, and HLG ends here."""
REFERENCE_WHITE = 203.0
"""cd/m2 of a white sheet in HDR (ITU-R BT.2408); SDR's largest number after tone mapping."""
PQ_PEAK = 10_000.0
"""cd/m2 of PQ's largest number."""

_D65, _C, _E = (0.3127, 0.3290), (0.310, 0.316), (1 / 3, 1 / 3)
PRIMARIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), _D65),  # BT.709
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), _C),  # BT.470 M
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), _D65),  # BT.470 B and G, BT.601 with 625 lines
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),  # BT.601 with 525 lines
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),  # SMPTE 240M
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), _C),  # film
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),  # BT.2020
    10: ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0), _E),  # SMPTE ST 428-1, XYZ itself
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),  # SMPTE RP 431-2
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),  # SMPTE EG 432-1, Display P3
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), _D65),  # EBU Tech. 3213-E
}
"""AVColorPrimaries -> CIE xy of red, green, blue and white: ITU-T H.273, table 2."""
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
"""XYZ to the cone responses in which a white point is adapted to another (Lam, 1985)."""


def tone_map(rgb: np.ndarray, *, transfer: str, primaries: int = 9) -> np.ndarray:
    """Turn HDR numbers to SDR ones of BT.709, as this file's head says.

    Only tables, sums, products and square roots touch the pixels, which every machine rounds alike.

    Args:
        rgb: ``(3, h, w)`` uint16, full range: 65535 is the signal 1.0.
        transfer: `pq` or `hlg`.
        primaries: AVColorPrimaries of the picture; unspecified and unknown are BT.2020.

    Returns:
        ``(h, w, 3)`` uint8.
    """
    light = _light_table(transfer)[rgb]
    if transfer == "hlg":
        weights = rgb_to_xyz(primaries)[1].astype(np.float32)
        luminance = light[0] * weights[0] + light[1] * weights[1] + light[2] * weights[2]
        light *= _system_gamma_table()[_quarter_power(luminance)]
    light *= _look_up_gain(np.maximum(np.maximum(light[0], light[1]), light[2]))
    matrix = matrix_to_bt709(primaries).astype(np.float32)
    frame = np.empty((*rgb.shape[1:], 3), np.uint8)
    for channel, (red, green, blue) in enumerate(matrix):
        part = light[0] * red
        part += light[1] * green
        part += light[2] * blue
        np.sqrt(part.clip(0, 1, out=part), out=part)
        part *= 65535
        part += 0.5
        frame[..., channel] = _display_table()[part.astype(np.uint16)]
    return frame


def pq_to_light(signal: np.ndarray) -> np.ndarray:
    """The EOTF of SMPTE ST 2084: a signal in [0, 1] to cd/m2, float64."""
    power = np.power(signal, 32 / 2523)  # 1 / m2
    light = np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)
    result: np.ndarray = PQ_PEAK * np.power(light, 16384 / 2610)  # 1 / m1
    return result


def light_to_pq(light: np.ndarray) -> np.ndarray:
    """The inverse EOTF of SMPTE ST 2084: cd/m2 to a signal in [0, 1], float64."""
    power = np.power(light / PQ_PEAK, 2610 / 16384)
    return np.power((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power), 2523 / 32)


def hlg_to_scene(signal: np.ndarray) -> np.ndarray:
    """The inverse OETF of ARIB STD-B67: a signal in [0, 1] to the scene's light in [0, 1]."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def compress(light: np.ndarray) -> np.ndarray:
    """The EETF of ITU-R BT.2390, 5.4.1: cd/m2 up to `SOURCE_PEAK` to cd/m2 up to `REFERENCE_WHITE`.

    Both black levels are 0, so that its term for black is none.
    """
    peak = light_to_pq(np.array(SOURCE_PEAK))
    largest = light_to_pq(np.array(REFERENCE_WHITE)) / peak
    knee = 1.5 * largest - 0.5
    signal = np.minimum(light_to_pq(light) / peak, 1)  # brighter is as bright as the peak
    t = np.maximum(signal - knee, 0) / (1 - knee)
    curve = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (3 * t**2 - 2 * t**3) * largest
    )
    return np.where(signal < knee, light, pq_to_light(curve * peak))


def rgb_to_xyz(primaries: int) -> np.ndarray:
    """``(3, 3)`` float64: linear RGB of AVColorPrimaries (unknown: BT.2020) to CIE XYZ."""
    *colours, white = PRIMARIES.get(primaries, PRIMARIES[9])
    columns = np.array([(x, y, 1 - x - y) for x, y in colours]).T
    return columns * np.linalg.solve(columns, _white_to_xyz(white))


@functools.cache
def matrix_to_bt709(primaries: int) -> np.ndarray:
    """``(3, 3)`` float64: linear RGB of AVColorPrimaries to that of BT.709, white to white."""
    white = PRIMARIES.get(primaries, PRIMARIES[9])[3]
    cones = np.array([BRADFORD @ _white_to_xyz(point) for point in (white, _D65)])
    adapt = np.linalg.solve(BRADFORD, (cones[1] / cones[0])[:, None] * BRADFORD)
    return np.linalg.solve(rgb_to_xyz(1), adapt @ rgb_to_xyz(primaries))


def _white_to_xyz(white: tuple[float, float]) -> np.ndarray:
    x, y = white
    return np.array([x / y, 1, (1 - x - y) / y])


# Tables are computed in float64 and then rounded, which hides how a machine's libm rounds.


@functools.cache
def _light_table(transfer: str) -> np.ndarray:
    """``(65536,)`` float32: light of each number. PQ: the display's, 1 is `SOURCE_PEAK`; HLG: the
    scene's, 1 is its largest."""
    signal = np.arange(65536) / 65535
    light = hlg_to_scene(signal) if transfer == "hlg" else pq_to_light(signal) / SOURCE_PEAK
    return light.astype(np.float32)


@functools.cache
def _system_gamma_table() -> np.ndarray:
    """``(65536,)`` float32: HLG's OOTF, luminance ** (1.2 - 1), of luminance ** (1 / 4)."""
    return np.power(np.arange(65536) / 65535, 4 * (1.2 - 1)).astype(np.float32)


@functools.cache
def _gain_tables() -> tuple[np.ndarray, np.ndarray]:
    """Two ``(4097,)`` float32 of light ** (1 / 4), up to `PQ_PEAK`: what `compress` multiplies
    light by (in and out in `SOURCE_PEAK`s and SDR whites), and how much that grows to the next."""
    light = PQ_PEAK * (np.arange(1, 4097) / 4096) ** 4
    gain = compress(light) / light * SOURCE_PEAK / REFERENCE_WHITE
    gain = np.concatenate([gain[:1], gain])  # constant at the dark end
    return gain.astype(np.float32), np.diff(gain, append=gain[-1]).astype(np.float32)


def _look_up_gain(light: np.ndarray) -> np.ndarray:
    """``(h, w)`` float32 of `SOURCE_PEAK`s to factors. Between the table's entries on a line: with
    the nearest one instead, a bright ramp would not rise everywhere."""
    gain, growth = _gain_tables()
    place = np.sqrt(np.sqrt(light * np.float32(SOURCE_PEAK / PQ_PEAK)))
    place *= 4096
    index = place.astype(np.uint16)
    place -= index
    factors: np.ndarray = gain[index] + growth[index] * place
    return factors


def _quarter_power(light: np.ndarray) -> np.ndarray:
    """Light in [0, 1] to round(light ** (1 / 4) * 65535), uint16: fine steps where it is dark."""
    root: np.ndarray = np.sqrt(np.sqrt(light))
    root *= 65535
    root += 0.5
    return root.astype(np.uint16)


@functools.cache
def _display_table() -> np.ndarray:
    """``(65536,)`` uint8: ITU-R BT.1886 backwards, of the square root of light (1: white)."""
    shown: np.ndarray = np.rint(255 * np.power(np.arange(65536) / 65535, 2 / 2.4))
    return shown.astype(np.uint8)
