// What a report does: open segments, by pointer and by keyboard, and name the bars of charts.
"use strict";

(() => {
  const packs = JSON.parse(document.getElementById("data").textContent).packs;

  // Text from files is only ever text: nothing here makes markup of a string.
  function make(name, properties = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key === "style") for (const [rule, to] of Object.entries(value)) element.style.setProperty(rule, to);
      else if (key.includes("-")) element.setAttribute(key, value);
      else element[key] = value;
    }
    element.append(...children);
    return element;
  }

  let opened = null; // the button whose segment is shown
  let panel = null;
  let showsGrid = true;

  function close() {
    if (!opened) return;
    opened.setAttribute("aria-expanded", "false");
    opened.removeAttribute("aria-controls");
    panel.remove();
    opened = panel = null;
  }

  function open(button) {
    const { pack, segment } = button.dataset;
    close();
    opened = button;
    panel = panelOf(packs[pack].segments[segment], button);
    button.setAttribute("aria-expanded", "true");
    button.setAttribute("aria-controls", panel.id);
    button.closest("li").append(panel);
  }

  function neighbour(button, step) {
    const buttons = [...document.querySelectorAll(".segment")];
    return buttons[buttons.indexOf(button) + step];
  }

  function focus(button) {
    for (const other of button.parentElement.querySelectorAll("button")) other.tabIndex = -1;
    button.tabIndex = 0;
    button.focus();
  }

  function panelOf(segment, button) {
    const title = make("h3", { id: "panel-title" }, segment.title);
    const step = (text, by) => {
      const other = neighbour(button, by);
      const pressed = () => {
        focus(other);
        open(other);
      };
      return make("button", { type: "button", disabled: !other, onclick: pressed }, text);
    };
    const shut = () => {
      const last = opened;
      close();
      focus(last);
    };
    const buttons = make(
      "div",
      { className: "buttons" },
      step("Previous", -1),
      step("Next", 1),
      make("button", { type: "button", onclick: shut }, "Close"),
    );
    const made = make(
      "div",
      { className: "panel", id: "panel", role: "region", "aria-labelledby": "panel-title" },
      make("div", { className: "panel-head" }, title, buttons),
    );
    made.classList.toggle("grid", showsGrid);
    if (segment.frames.length) made.append(gridSwitch(made), framesOf(segment));
    else made.append(make("p", { className: "empty" }, segment.without));
    made.append(factsOf(segment.facts));
    return made;
  }

  function gridSwitch(made) {
    const change = (event) => {
      showsGrid = event.target.checked;
      made.classList.toggle("grid", showsGrid);
    };
    const box = make("input", { type: "checkbox", checked: showsGrid, onchange: change });
    return make("label", {}, box, " tubelet grid");
  }

  function framesOf(segment) {
    const [height, width] = segment.shown_size;
    const [, rows, columns] = segment.grid;
    const frames = segment.frames.map((frame) =>
      make(
        "figure",
        { className: "frame" },
        make(
          "div",
          {
            className: "picture",
            style: {
              width: `min(${width}px, 82vw)`,
              "aspect-ratio": `${width} / ${height}`,
              "--rows": rows,
              "--columns": columns,
            },
          },
          make("img", { src: frame.image, alt: frame.alt, width, height }),
        ),
        make("figcaption", {}, frame.caption),
      ),
    );
    return make("div", { className: "frames" }, ...frames);
  }

  function factsOf(facts) {
    const rows = facts.map(([label, value]) =>
      make("div", {}, make("dt", {}, label), make("dd", {}, value)),
    );
    return make("dl", { className: "facts" }, ...rows);
  }

  // The frames of a segment in its bar, side by side: as many as its width has room for.
  for (const button of document.querySelectorAll(".segment")) {
    const { frames } = packs[button.dataset.pack].segments[button.dataset.segment];
    const panes = frames.map((frame) =>
      make("span", { className: "pane", style: { "background-image": `url(${frame.image})` } }),
    );
    button.append(...panes);
    button.classList.toggle("film", panes.length > 0);
  }

  for (const bar of document.querySelectorAll(".bar")) {
    bar.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      focus(button);
      if (button === opened) close();
      else open(button);
    });
    bar.addEventListener("keydown", (event) => {
      const buttons = [...bar.querySelectorAll("button")];
      const place = buttons.indexOf(document.activeElement);
      const last = buttons.length - 1;
      const places = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: last };
      if (!(event.key in places)) return;
      event.preventDefault();
      focus(buttons[Math.min(Math.max(places[event.key], 0), last)]);
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !opened) return;
    const last = opened;
    close();
    focus(last);
  });

  // For pointers only: the same figures are in the table under each chart, for everyone.
  const tip = make("div", { className: "tip", hidden: true, "aria-hidden": "true" });
  document.body.append(tip);
  document.addEventListener("pointermove", (event) => {
    const named = event.target.closest(".chart [aria-roledescription][aria-label], .segment");
    tip.hidden = !named;
    if (!named) return;
    tip.textContent = named.getAttribute("aria-label");
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(event.clientX + 12, room))}px`;
    tip.style.top = `${event.clientY + 18}px`;
  });
})();
