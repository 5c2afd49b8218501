// Two to six runs: the same curves on one set of axes, held-out difference, config, same prompts.
(() => {
  const {el, number, colour} = selfkd;
  const main = document.getElementById("main");
  const names = [...new Set(new URLSearchParams(location.search).getAll("run"))];
  const MARKS = ["circle", "square", "triangle", "diamond", "star", "wye"];

  const METRICS = [
    [
      "heldout_reward",
      "Held-out reward",
      "Mean reward of the held-out answers. This, not the judge's reward, says which run made the better model.",
      true,
    ],
    [
      "reward_mean",
      "Judge reward of the samples",
      "Comparable only where judge, prompts and temperature are the same.",
      true,
    ],
    ["pass_first", "Prompts solved by one sample (pass@1)", "One try a prompt."],
    [
      "pass_last",
      "Prompts solved by any sample",
      "The largest k that the run sampled; it differs between runs with other sample counts.",
    ],
    [
      "unique",
      "Distinct completions of a prompt",
      "The run that keeps more of it has more left to learn from.",
    ],
    ["accept_rate", "Samples kept", "The share of the samples that became training data."],
    ["length_mean", "Tokens a completion", "Reward gained by length alone shows here."],
    ["seconds_all", "Seconds a round", "All verbs together."],
  ];

  const widen = (r) => {
    const ks = Object.keys(r.pass_at_k || {}).map(Number);
    const spent = Object.values(r.seconds).filter((s) => s !== null);
    return {
      ...r,
      pass_first: ks.length ? r.pass_at_k[Math.min(...ks)] : null,
      pass_last: ks.length ? r.pass_at_k[Math.max(...ks)] : null,
      seconds_all: spent.length ? selfkd.sum(spent) : null,
    };
  };

  const overlay = (runs, [key, title, hint, wide]) => {
    const numbers = [...new Set(runs.flatMap((r) => r.rounds.map((x) => x.round)))].sort(
      (a, b) => a - b,
    );
    const rows = numbers
      .map((n) => ({
        round: n,
        ...Object.fromEntries(
          runs.map((r) => {
            const row = r.rounds.find((x) => x.round === n);
            return [r.run, row ? (widen(row)[key] ?? null) : null];
          }),
        ),
      }))
      .filter((row) => runs.some((r) => row[r.run] !== null));
    return {
      id: key,
      title,
      hint,
      wide: false,
      rows,
      legend: runs.map((r, i) => ({label: r.run, color: colour(i), symbol: MARKS[i]})),
      columns: [{key: "round"}, ...runs.map((r) => ({key: r.run}))],
      draw: (w, h) =>
        selfkd.byRound(rows, w, h, {label: null, zero: true}, [
          ...runs.flatMap((r, i) => selfkd.line(rows, r.run, colour(i), {symbol: MARKS[i]})),
          selfkd.tip(
            rows,
            "round",
            (row) => row[runs.find((r) => row[r.run] !== null).run],
            (row) =>
              [`round ${row.round}`, ...runs.map((r) => `${r.run}: ${number(row[r.run])}`)].join(
                "\n",
              ),
          ),
        ]),
    };
  };

  const sentence = (d, first, other) => {
    if (!d.of || !d.against) return `${(d.of ? first : other).run} has no held-out measurement.`;
    if (!d.prompts)
      return `${other.run} and ${first.run} share no held-out prompt: nothing to pair.`;
    const sure = d.low > 0 ? "better" : d.high < 0 ? "worse" : "not told apart";
    return [
      el("strong", {}, other.run),
      ` (${d.of.policy}, ${number(d.of.reward_mean)}) against `,
      el("strong", {}, first.run),
      ` (${d.against.policy}, ${number(d.against.reward_mean)}): `,
      el(
        "span",
        {
          class: sure === "better" ? "better" : sure === "worse" ? "worse" : null,
          "data-delta": String(d.delta),
        },
        selfkd.signed(d.delta),
      ),
      `, 95 % interval ${selfkd.signed(d.low)} to ${selfkd.signed(d.high)} over ${number(d.prompts)} shared prompts: ${sure}.`,
    ];
  };

  const heldout = (data) =>
    el(
      "section",
      {class: "panel"},
      el("h2", {}, "Held-out difference"),
      el(
        "p",
        {class: "hint"},
        "Newest measurement of each run against the first run, prompt by prompt; the interval is a paired bootstrap over prompts. It says nothing about other seeds: a second seed often differs more.",
      ),
      el(
        "ul",
        {class: "plain"},
        data.heldout.map((d, i) => el("li", {}, sentence(d, data.runs[0], data.runs[i + 1]))),
      ),
    );

  const config = (data) => {
    const rows = Object.entries(data.config).map(([key, values]) => ({
      key,
      ...Object.fromEntries(
        values.map((v, i) => [
          `v${i}`,
          v === null ? null : typeof v === "string" ? v : JSON.stringify(v),
        ]),
      ),
    }));
    const columns = [
      {key: "key", title: "key", text: true},
      ...data.runs.map((r, i) => ({key: `v${i}`, title: r.run, text: true})),
    ];
    return el(
      "section",
      {class: "panel"},
      el("h2", {}, "Config"),
      rows.length
        ? [
            el("p", {class: "hint"}, "Only what differs."),
            selfkd.table(columns, rows, {caption: "Config differences"}),
          ]
        : el("p", {class: "empty"}, "The same in every key."),
    );
  };

  const prompts = (data) => {
    if (!data.prompts.length)
      return el(
        "section",
        {class: "panel"},
        el("h2", {}, "Same prompts"),
        el("p", {class: "empty"}, "The runs share no measured held-out prompt."),
      );
    const one = (p) =>
      el(
        "section",
        {class: "same"},
        el("pre", {class: "said prompt"}, selfkd.visible(p.prompt ?? "")),
        p.answer !== null ? el("p", {class: "meta"}, `expected ${p.answer}`) : "",
        el(
          "div",
          {class: "cards"},
          data.runs.map((r, i) =>
            el(
              "article",
              {class: "sample"},
              el(
                "header",
                {},
                el("a", {href: selfkd.path("runs", r.run, "prompts", p.prompt_id)}, r.run),
                " ",
                selfkd.verdict({status: "ok", reward: p.rewards[i]}),
              ),
              el("pre", {class: "said"}, selfkd.visible(p.completions[i] ?? "")),
            ),
          ),
        ),
      );
    return el(
      "section",
      {class: "panel"},
      el("h2", {}, "Same prompts"),
      el("p", {class: "hint"}, "Held-out answers, those first where the runs differ most."),
      data.prompts.map(one),
    );
  };

  const pick = async () => {
    const {data} = await selfkd.get("/api/runs");
    const boxes = data.map((r) =>
      el(
        "label",
        {class: "choice"},
        el("input", {type: "checkbox", name: "run", value: r.run, checked: names.includes(r.run)}),
        ` ${r.run} (${r.loop}, ${r.state})`,
      ),
    );
    main.append(
      el(
        "form",
        {class: "panel", action: "/compare"},
        el("p", {}, "Tick two to six runs."),
        boxes,
        el("p", {}, el("button", {}, "Compare")),
      ),
    );
    main.removeAttribute("aria-busy");
  };

  main.append(el("h1", {}, "Compare runs"));
  if (names.length < 2 || names.length > 6) {
    pick().catch((error) => selfkd.say(error.message, true));
    return;
  }
  const place = {
    facts: el("div"),
    heldout: el("div"),
    plots: el("div", {class: "figures"}),
    rest: el("div"),
  };
  main.append(place.facts, place.heldout, place.plots, place.rest);
  selfkd.follow(
    () => `/api/compare?${new URLSearchParams(names.map((n) => ["run", n]))}`,
    (data) => {
      const facts = [
        {key: "run", text: true, show: (v) => el("a", {href: selfkd.path("runs", v)}, v)},
        {key: "state", text: true, show: (_, r) => selfkd.state(r)},
        {key: "loop", text: true},
        {key: "model", text: true},
        {key: "judge", text: true},
        {key: "last", title: "rounds"},
      ];
      place.facts.replaceChildren(
        selfkd.table(
          facts,
          data.runs.map((r) => ({...r, last: r.rounds.length})),
          {caption: "The runs"},
        ),
      );
      place.heldout.replaceChildren(heldout(data));
      selfkd.figures(
        place.plots,
        METRICS.map((m) => overlay(data.runs, m)),
      );
      place.rest.replaceChildren(config(data), prompts(data));
    },
  );
})();
