// A figure: title, what to look for, the drawing, its legend, its table and its CSV.
(() => {
  const {el} = selfkd;
  const figures = new Map();

  const resize = new ResizeObserver((entries) => {
    for (const {target} of entries) {
      const figure = figures.get(target.closest("figure"));
      if (figure && Math.abs(figure.width - target.clientWidth) > 1) draw(figure);
    }
  });

  // The mark that a line has at each round, so that lines are told apart without colour.
  const MARKS = {
    circle: "●",
    square: "■",
    triangle: "▲",
    diamond: "◆",
    star: "★",
    wye: "Y",
    cross: "✚",
  };

  const key = (entries) =>
    el(
      "ul",
      {class: "legend"},
      entries.map((e) =>
        el(
          "li",
          {},
          el(
            "span",
            {class: `swatch ${e.shape || "line"}`, color: e.color, "aria-hidden": "true"},
            e.symbol ? el("span", {class: "mark"}, MARKS[e.symbol]) : null,
          ),
          e.label,
        ),
      ),
    );

  const draw = (figure) => {
    const {spec, canvas} = figure;
    figure.width = canvas.clientWidth;
    if (!figure.width || !spec.rows.length || spec.empty) return;
    const height = spec.height
      ? spec.height(figure.width)
      : Math.round(Math.min(320, Math.max(200, figure.width * 0.52)));
    const plot = spec.draw(figure.width, height);
    plot.querySelectorAll("style").forEach((style) => style.remove()); // style.css has the rules
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${spec.title}. ${spec.hint}`);
    const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
    title.textContent = `${spec.title}; the numbers are in the table below`;
    plot.prepend(title);
    canvas.replaceChildren(plot);
  };

  const make = (spec) => {
    const canvas = el("div", {class: "canvas"});
    const of = el("span", {class: "unseen"}, ` of ${spec.title}`);
    const details = el("details", {}, el("summary", {}, "Numbers", of));
    const legend = el("div");
    const hint = el("p", {class: "hint"});
    const node = el(
      "figure",
      {
        id: `figure-${spec.id}`,
        class: spec.wide ? "wide" : null,
        "aria-labelledby": `title-${spec.id}`,
      },
      el("h2", {id: `title-${spec.id}`}, spec.title),
      hint,
      legend,
      canvas,
      details,
    );
    const figure = {spec, canvas, details, legend, hint, node, width: 0, drawn: ""};
    figures.set(node, figure);
    details.addEventListener("toggle", () => fill(figure));
    resize.observe(canvas);
    return figure;
  };

  const fill = (figure) => {
    const {details, spec} = figure;
    if (!details.open && details.children.length === 1) return;
    const save = el(
      "button",
      {
        type: "button",
        onclick: () => selfkd.download(`${spec.id}.csv`, selfkd.csv(spec.columns, spec.rows)),
      },
      "Save as CSV",
    );
    details.replaceChildren(
      details.firstChild,
      selfkd.table(spec.columns, spec.rows, {caption: spec.title, limit: 500}),
      save,
    );
    if (spec.rows.length > 500)
      details.append(
        el(
          "p",
          {class: "hint"},
          `The first 500 of ${selfkd.number(spec.rows.length)} rows; the CSV has all.`,
        ),
      );
  };

  // Shows figures in `place`; those that are there already are drawn anew only where data changed.
  selfkd.figures = (place, specs) => {
    const present = new Map([...place.children].map((node) => [node.id, figures.get(node)]));
    let before = null;
    for (const spec of specs) {
      const figure = present.get(`figure-${spec.id}`) || make(spec);
      const content = JSON.stringify([spec.rows, spec.hint, spec.empty, spec.legend]);
      figure.spec = spec;
      const next = before ? before.nextSibling : place.firstChild;
      if (figure.node !== next) place.insertBefore(figure.node, next);
      before = figure.node;
      if (figure.drawn === content) continue;
      figure.drawn = content;
      figure.hint.textContent = spec.hint;
      const empty = spec.empty || (spec.rows.length ? "" : "Nothing of this is recorded yet.");
      figure.legend.replaceChildren(...(empty || !spec.legend ? [] : [key(spec.legend)]));
      if (empty) figure.canvas.replaceChildren(el("p", {class: "empty"}, empty));
      draw(figure);
      figure.details.hidden = !spec.rows.length;
      fill(figure);
    }
    for (const [id, figure] of present) {
      if (figure && !specs.some((s) => `figure-${s.id}` === id)) {
        resize.unobserve(figure.canvas);
        figures.delete(figure.node);
        figure.node.remove();
      }
    }
  };
})();
