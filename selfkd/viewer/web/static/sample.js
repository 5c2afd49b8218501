// Parts of pages about one run that several pages, and the report, share.
(() => {
  const {el, number} = selfkd;
  const runPath = (...parts) => selfkd.path("runs", selfkd.run, ...parts);
  selfkd.policyLink = (name) =>
    selfkd.offline
      ? String(name ?? "–")
      : name
        ? el("a", {href: runPath("policies", name)}, name)
        : "–";
  selfkd.samplesLink = (query, text) =>
    selfkd.offline
      ? text
      : el("a", {href: `${runPath("samples")}?${new URLSearchParams(query)}`}, text);
  selfkd.promptLink = (prompt, sample, text) =>
    selfkd.offline
      ? text
      : el(
          "a",
          {href: runPath("prompts", prompt) + (sample ? `#${encodeURIComponent(sample)}` : "")},
          text,
        );

  const last = (rows, key) =>
    rows.reduce((found, r) => (r[key] === null || r[key] === undefined ? found : r), null);

  const tiles = (run) => {
    const [reward, heldout, base] = [
      last(run.rounds, "reward_mean"),
      last(run.rounds, "heldout_reward"),
      run.rounds.find((r) => r.heldout_reward !== null),
    ];
    const first = run.rounds.find((r) => r.reward_mean !== null);
    const total = (key) => selfkd.sum(run.rounds.map((r) => r[key]));
    const tile = (title, value, note) =>
      el(
        "div",
        {class: "tile"},
        el("dt", {}, title),
        el("dd", {}, value, note && el("small", {}, note)),
      );
    const round = run.rounds.length ? run.rounds[run.rounds.length - 1].round : null;
    const spent = selfkd.sum(run.rounds.flatMap((r) => Object.values(r.seconds)));
    return el(
      "dl",
      {class: "tiles"},
      tile(
        "round",
        round === null ? "–" : `${round}`,
        run.planned_rounds ? `of ${run.planned_rounds}` : "",
      ),
      tile(
        "judge reward",
        number(reward && reward.reward_mean),
        first && reward && first !== reward
          ? `${number(first.reward_mean)} in round ${first.round}`
          : "",
      ),
      tile(
        "held-out",
        number(heldout && heldout.heldout_reward),
        heldout && base !== heldout
          ? `${number(base.heldout_reward)} in round ${base.round}`
          : heldout
            ? ""
            : "no gold",
      ),
      tile("samples", number(total("samples")), `${number(total("kept"))} kept`),
      tile("tokens sampled", number(total("tokens"))),
      tile("time", clock(spent)),
    );
  };

  const clock = (s) =>
    s >= 5400
      ? `${(s / 3600).toFixed(1)} h`
      : s >= 90
        ? `${Math.round(s / 60)} min`
        : `${Math.round(s)} s`;

  const now = (run) => {
    if (!run.current) return run.ending ? el("p", {class: "ending"}, `Ended: ${run.ending}`) : null;
    const {round, verb, label, done, total} = run.current;
    const bar = total ? el("progress", {max: total, value: done, "aria-label": verb}) : null;
    return el(
      "p",
      {class: "now"},
      `Round ${round}: ${verb}${label ? ` (${label})` : ""} `,
      bar,
      ` ${number(done)}${total ? ` of ${number(total)}` : ""}`,
    );
  };

  selfkd.runHead = (run) =>
    [
      el("h1", {}, run.run, " ", selfkd.state(run)),
      el(
        "p",
        {class: "facts"},
        `${run.loop} on ${run.model}, judged by ${run.judge}`,
        run.created ? `, started ${run.created.slice(0, 16).replace("T", " ")} UTC` : "",
      ),
      now(run),
      run.rounds.length
        ? tiles(run)
        : el(
            "p",
            {class: "empty"},
            "No round has recorded anything yet. This page fills itself as the run goes on.",
          ),
    ].filter(Boolean);

  selfkd.alarmList = (run) =>
    run.alarms.length
      ? [
          el(
            "section",
            {class: "panel alarms", "aria-label": "Alarms"},
            el("h2", {}, "Alarms"),
            el(
              "ul",
              {},
              run.alarms.map((a) =>
                el(
                  "li",
                  {class: a.level},
                  el("strong", {}, `${a.name.replaceAll("_", " ")}, from round ${a.round}: `),
                  a.message,
                ),
              ),
            ),
          ),
        ]
      : [];

  selfkd.policyList = (run) => {
    if (!run.policies || run.policies.length < 2) return [];
    const rounds = (list) =>
      list.length
        ? list.map((r, i) => [i ? ", " : "", selfkd.samplesLink({round: r}, `round ${r}`)])
        : "–";
    const rows = run.policies.map((p) => ({
      ...p,
      decision: p.gate ? p.gate.decision.replace("_", " ") : null,
      delta: p.gate ? p.gate.delta : null,
      p_value: p.gate ? p.gate.p_value : null,
    }));
    const columns = [
      {key: "policy", text: true, show: (v) => selfkd.policyLink(v)},
      {key: "made_in", title: "trained in round"},
      {key: "start", title: "from", text: true},
      {key: "examples"},
      {key: "steps", title: "optimiser steps"},
      {key: "loss_last", title: "last loss"},
      {key: "decision", title: "gate", text: true},
      {key: "delta", title: "held-out against the best", show: (v) => selfkd.signed(v)},
      {key: "p_value", title: "p of a fall"},
      {key: "sampled_in", title: "its samples", text: true, show: rounds},
    ];
    return [
      el("h2", {}, "Policies"),
      el(
        "p",
        {class: "hint"},
        "Every version of the model: what it started from, how many examples made it, and whether it held up on held-out against the best before it (one-sided paired test; a small p is a fall).",
      ),
      selfkd.table(columns, rows, {caption: "Policies"}),
    ];
  };

  // A verdict in words: no reward is never reward 0.
  selfkd.verdict = (s) => {
    if (!s.status) return el("span", {class: "verdict none"}, "not judged");
    const said =
      s.reward === null
        ? `no reward: ${s.status === "ok" ? "not a number" : s.status}`
        : `reward ${number(s.reward)}`;
    return el(
      "span",
      {class: `verdict ${s.reward === null ? "none" : s.reward > 0 ? "good" : "low"}`},
      said,
    );
  };

  selfkd.decision = (s) =>
    s.kept === null || s.kept === undefined
      ? el(
          "span",
          {class: "decision none"},
          {heldout: "held-out, not learnt from", controls: "planted, not learnt from"}[s.label] ??
            "not decided on",
        )
      : el(
          "span",
          {class: `decision ${s.kept ? "kept" : "dropped"}`},
          s.kept ? "kept" : `dropped: ${s.reason}`,
        );

  const fact = (name, value) =>
    value === null || value === undefined || value === ""
      ? null
      : [el("dt", {}, name), el("dd", {}, value)];

  // One sample in full; `more` says what became of it (decisions, examples), where that was asked.
  selfkd.sampleCard = (s, {prompt = false} = {}) =>
    el(
      "article",
      {class: "sample", id: `sample:${s.sample_id}`, "data-id": s.sample_id, tabindex: "-1"},
      el(
        "header",
        {},
        selfkd.verdict(s),
        " ",
        selfkd.decision(s),
        el(
          "span",
          {class: "meta"},
          `${s.tokens} tokens, ${s.finish === "length" ? "cut at the limit" : "finished"}`,
        ),
      ),
      prompt && el("pre", {class: "said prompt"}, s.prompt ?? ""),
      el(
        "pre",
        {class: "said"},
        s.completion === "" ? el("em", {}, "empty") : selfkd.visible(s.completion),
      ),
      el(
        "dl",
        {class: "fields"},
        fact("expected", s.answer),
        fact("judge read", s.verdict_answer),
        fact("rationale", s.rationale),
        fact("judge", s.judge),
        fact("made by", [
          selfkd.policyLink(s.policy),
          s.view && s.view !== "plain" ? `, view ${s.view}` : "",
        ]),
        s.decisions &&
          s.decisions.length > 1 &&
          fact(
            "decided",
            s.decisions.map((d) => `round ${d.round}: ${d.kept ? "kept" : d.reason}`).join("; "),
          ),
        s.examples &&
          !["heldout", "controls"].includes(s.label) &&
          fact(
            "became",
            s.examples.length
              ? s.examples.map((e, i) => [
                  i ? ", " : "",
                  e.role === "rejected" ? "the rejected side of " : "",
                  "an example for ",
                  e.policy ? selfkd.policyLink(e.policy) : `round ${e.round}, not trained yet`,
                  e.weight !== 1 ? ` (weight ${number(e.weight)})` : "",
                ])
              : "no example",
          ),
        s.parents && s.parents.length ? fact("made from", s.parents.join(", ")) : null,
        fact("id", el("code", {}, s.sample_id)),
      ),
    );

  // Invisible characters written out: they are a known way to fool a judge or a reader.
  selfkd.visible = (text) =>
    text
      .split(
        /([\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff])/,
      )
      .filter((part) => part !== "")
      .map((part) =>
        /^[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]$/.test(
          part,
        )
          ? el(
              "span",
              {class: "hidden-character"},
              `\\u${part.charCodeAt(0).toString(16).padStart(4, "0")}`,
            )
          : part,
      );
})();
