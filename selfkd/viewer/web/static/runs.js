// The list of runs: filter, sort, and pick some to compare. It follows what the folder holds.
(() => {
  const {el, number} = selfkd;
  const main = document.getElementById("main");
  const asked = new URLSearchParams(location.search);
  const settings = {
    text: asked.get("text") || "",
    state: asked.get("state") || "",
    sort: asked.get("sort") || "created",
    down: asked.get("down") !== "0",
  };
  const chosen = new Set();
  let runs = [];

  const columns = [
    {key: "run", title: "run", text: true},
    {key: "state", title: "state", text: true},
    {key: "loop", title: "loop", text: true},
    {key: "model", title: "model", text: true},
    {key: "judge", title: "judge", text: true},
    {key: "round", title: "round"},
    {key: "reward_mean", title: "reward"},
    {key: "spark", title: "reward by round", fixed: true, text: true},
    {key: "heldout_now", title: "held-out"},
    {key: "gain", title: "since round 0"},
    {key: "alarmed", title: "alarms", text: true},
    {key: "created", title: "started"},
  ];

  const spark = (values) => {
    const points = values.map((v, i) => [i, v]).filter(([, v]) => v !== null);
    const [w, h] = [96, 26];
    const svg = d3
      .create("svg")
      .attr("viewBox", `0 0 ${w} ${h}`)
      .attr("width", w)
      .attr("height", h)
      .attr("class", "spark")
      .attr("role", "img");
    svg
      .append("title")
      .text(
        points.length
          ? `reward by round: ${points.map(([, v]) => number(v)).join(", ")}`
          : "no reward yet",
      );
    if (!points.length) return svg.node();
    const x = d3.scaleLinear([0, Math.max(1, values.length - 1)], [4, w - 4]);
    const [low, high] = d3.extent(points, (p) => p[1]);
    const y = d3.scaleLinear([Math.min(0, low), high || 1], [h - 4, 4]);
    svg.append("path").attr(
      "d",
      d3.line(
        (p) => x(p[0]),
        (p) => y(p[1]),
      )(points),
    );
    const last = points[points.length - 1];
    svg.append("circle").attr("cx", x(last[0])).attr("cy", y(last[1])).attr("r", 2.8);
    return svg.node();
  };

  const derive = (run) => {
    const known = run.heldout.filter((v) => v !== null);
    const now = known.length ? known[known.length - 1] : null;
    return {
      ...run,
      heldout_now: now,
      gain: known.length > 1 && run.heldout[0] !== null ? now - run.heldout[0] : null,
      alarmed: run.alarms.length,
    };
  };

  const cell = {
    run: (r) => [el("a", {href: selfkd.path("runs", r.run)}, r.run)],
    state: (r) => selfkd.state(r),
    round: (r) =>
      r.round === null ? "–" : `${r.round}${r.planned_rounds ? ` of ${r.planned_rounds}` : ""}`,
    reward_mean: (r) => number(r.reward_mean),
    heldout_now: (r) => number(r.heldout_now),
    gain: (r) =>
      r.gain === null
        ? "–"
        : el("span", {class: r.gain < 0 ? "worse" : "better"}, selfkd.signed(r.gain)),
    spark: (r) => spark(r.rewards),
    alarmed: (r) =>
      r.alarms.length
        ? r.alarms.map((a) =>
            el("span", {class: r.critical ? "alarm critical" : "alarm"}, a.replaceAll("_", " ")),
          )
        : "–",
    created: (r) => (r.created || "–").slice(0, 16).replace("T", " "),
  };

  const matching = () => {
    const words = settings.text.toLowerCase().split(/\s+/).filter(Boolean);
    const found = runs.filter(
      (r) =>
        (!settings.state || r.state === settings.state) &&
        words.every((w) =>
          [r.run, r.loop, r.model, r.judge, ...r.alarms].join(" ").toLowerCase().includes(w),
        ),
    );
    const {sort, down} = settings;
    const value = (r) => (r[sort] === null || r[sort] === undefined ? null : r[sort]);
    return found.sort(
      (a, b) =>
        (value(a) === null) - (value(b) === null) ||
        (down ? -1 : 1) * (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0),
    );
  };

  const place = el("div");
  const count = el("p", {class: "hint", role: "status"});
  const compare = el("a", {class: "button", href: "/compare"}, "Compare");

  const remember = () =>
    history.replaceState(
      null,
      "",
      `?${new URLSearchParams({text: settings.text, state: settings.state, sort: settings.sort, down: settings.down ? "1" : "0"})}`,
    );

  const header = (c) => {
    if (c.fixed) return el("th", {scope: "col", class: "text"}, c.title);
    const sorted = settings.sort === c.key;
    const turn = () => {
      settings.down = sorted ? !settings.down : !c.text;
      settings.sort = c.key;
      remember();
      show();
      place.querySelector(`[data-sort="${c.key}"]`).focus();
    };
    return el(
      "th",
      {
        scope: "col",
        class: c.text ? "text" : null,
        "aria-sort": sorted ? (settings.down ? "descending" : "ascending") : null,
      },
      el(
        "button",
        {type: "button", "data-sort": c.key, onclick: turn},
        c.title,
        sorted ? (settings.down ? " ↓" : " ↑") : "",
      ),
    );
  };

  const pick = (run) =>
    el("input", {
      type: "checkbox",
      checked: chosen.has(run.run),
      "aria-label": `compare ${run.run}`,
      onchange: (e) => {
        e.target.checked ? chosen.add(run.run) : chosen.delete(run.run);
        offer();
      },
    });

  const offer = () => {
    compare.hidden = chosen.size < 2 || chosen.size > 6;
    compare.href = `/compare?${new URLSearchParams([...chosen].map((run) => ["run", run]))}`;
    compare.textContent = `Compare these ${chosen.size}`;
  };

  const show = () => {
    const found = matching();
    const row = (r) =>
      el(
        "tr",
        {},
        el("td", {class: "pick"}, pick(r)),
        columns.map((c) =>
          el(
            "td",
            {class: c.text ? "text" : null, "data-label": c.title, "data-key": c.key},
            cell[c.key] ? cell[c.key](r) : (r[c.key] ?? "–"),
          ),
        ),
      );
    const table = el(
      "table",
      {class: "runs"},
      el("caption", {}, el("span", {class: "unseen"}, "Runs of this folder")),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", {scope: "col"}, el("span", {class: "unseen"}, "compare")),
          columns.map(header),
        ),
      ),
      el("tbody", {}, found.map(row)),
    );
    const none = runs.length
      ? "No run matches."
      : "There are no runs in this folder yet. Start one with: selfkd run loops/rest_em.yaml";
    count.textContent = found.length
      ? `${found.length} of ${runs.length} runs. Tick two to six to compare them.`
      : none;
    place.replaceChildren(found.length ? el("div", {class: "scroll tall"}, table) : "");
    offer();
  };

  const states = ["running", "finished", "stopped", "failed", "damaged"];
  const search = el("input", {
    type: "search",
    value: settings.text,
    size: 30,
    placeholder: "name, loop, model, judge, alarm",
    oninput: (e) => {
      settings.text = e.target.value;
      remember();
      show();
    },
  });
  const state = el(
    "select",
    {
      onchange: (e) => {
        settings.state = e.target.value;
        remember();
        show();
      },
    },
    el("option", {value: ""}, "any"),
    states.map((s) => el("option", {value: s, selected: s === settings.state}, s)),
  );
  main.append(
    el("h1", {}, "Runs"),
    el(
      "form",
      {class: "filter", onsubmit: (e) => e.preventDefault()},
      el("label", {}, "Find ", search),
      el("label", {}, "State ", state),
      compare,
    ),
    count,
    place,
  );
  selfkd.follow(
    () => "/api/runs",
    (data) => {
      runs = data.map(derive);
      show();
    },
    3,
  );
})();
