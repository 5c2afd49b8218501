// The samples of a round by filter, a page at a time. The address holds the filter, so it can be
// kept and shared; j and k go through the rows.
(() => {
  const {el, number} = selfkd;
  const main = document.getElementById("main");
  const api = selfkd.path("api", "runs", selfkd.run);
  const LIMIT = 50;
  const asked = new URLSearchParams(location.search);
  const FIELDS = [
    "round",
    "label",
    "decision",
    "reason",
    "status",
    "low",
    "high",
    "text",
    "order",
    "prompt",
    "policy",
  ];
  const wanted = Object.fromEntries(FIELDS.map((f) => [f, asked.get(f) || ""]));
  let offset = Math.max(0, parseInt(asked.get("offset") || "0", 10) || 0);
  let at = -1;
  let labels = {};
  let pending = 0;

  const query = (more = {}) => {
    const q = new URLSearchParams();
    for (const [k, v] of Object.entries({...wanted, ...more}))
      if (v !== "" && v !== null && v !== undefined && !(k === "offset" && !v)) q.set(k, v);
    return q;
  };
  const select = (name, change) => el("select", {name, onchange: (e) => change(e.target.value)});
  const input = (name, attributes) =>
    el("input", {
      name,
      value: wanted[name],
      ...attributes,
      oninput: (e) => later(name, e.target.value),
    });
  const set = (name, value) => {
    wanted[name] = value;
    offset = 0;
    load();
  };
  const later = (name, value) => {
    wanted[name] = value;
    offset = 0;
    clearTimeout(pending);
    pending = setTimeout(load, 250);
  };

  const fields = {
    round: select("round", (v) => {
      wanted.reason = wanted.status = "";
      if (!(labels[v] || []).includes(wanted.label)) wanted.label = "";
      set("round", v);
    }),
    label: select("label", (v) => set("label", v)),
    decision: select("decision", (v) => set("decision", v)),
    reason: select("reason", (v) => set("reason", v)),
    status: select("status", (v) => set("status", v)),
    order: select("order", (v) => set("order", v)),
    low: input("low", {type: "number", step: "any", class: "short"}),
    high: input("high", {type: "number", step: "any", class: "short"}),
    text: input("text", {type: "search", placeholder: "in the completion"}),
    prompt: input("prompt", {type: "search", placeholder: "prompt id"}),
  };
  const titles = {
    round: "Round",
    label: "Which",
    decision: "Decision",
    reason: "Reason",
    status: "Judge status",
    low: "Reward from",
    high: "to",
    text: "Text",
    prompt: "Prompt",
    order: "Order",
  };

  const options = (node, values, chosen) =>
    node.replaceChildren(
      ...values.map(([value, text]) =>
        el("option", {value, selected: String(value) === String(chosen)}, text),
      ),
    );
  const counted = (counts) => [
    ["", "any"],
    ...Object.entries(counts).map(([name, n]) => [name, `${name} (${number(n)})`]),
  ];

  const offer = (data) => {
    options(
      fields.round,
      Object.keys(labels).map((r) => [r, r]),
      wanted.round,
    );
    options(
      fields.label,
      (labels[wanted.round] || [""]).map((l) => [
        l,
        {"": "own samples", heldout: "held-out answers", controls: "planted controls"}[l] ?? l,
      ]),
      wanted.label,
    );
    options(
      fields.decision,
      [
        ["", "any"],
        ["kept", "kept"],
        ["dropped", "dropped"],
      ],
      wanted.decision,
    );
    options(
      fields.order,
      [
        ["", "as recorded"],
        ["reward_high", "highest reward"],
        ["reward_low", "lowest reward"],
        ["longest", "longest"],
        ["shortest", "shortest"],
      ],
      wanted.order,
    );
    options(fields.reason, counted(data ? data.reasons : {}), wanted.reason);
    options(fields.status, counted(data ? data.statuses : {}), wanted.status);
  };

  const list = el("ol", {class: "samples"});
  const count = el("p", {class: "hint", role: "status"});
  const pager = el("nav", {class: "pager", "aria-label": "Pages"});

  const item = (s, i) =>
    el(
      "li",
      {
        tabindex: "-1",
        "data-id": s.sample_id,
        onfocus: () => {
          at = i;
          mark();
        },
      },
      el(
        "div",
        {class: "row-head"},
        selfkd.verdict(s),
        selfkd.decision(s),
        el(
          "span",
          {class: "meta"},
          `${s.tokens} tokens${s.finish === "length" ? ", cut" : ""} · `,
          selfkd.policyLink(s.policy),
        ),
        selfkd.promptLink(s.prompt_id, s.sample_id, "all samples of this prompt"),
      ),
      el("pre", {class: "said prompt clip"}, selfkd.visible(s.prompt ?? "")),
      el(
        "pre",
        {class: "said clip"},
        s.completion === "" ? el("em", {}, "empty") : selfkd.visible(s.completion),
      ),
      el(
        "p",
        {class: "meta"},
        [
          s.answer !== null && s.answer !== undefined ? `expected ${s.answer}` : "",
          s.verdict_answer !== null && s.verdict_answer !== undefined
            ? `judge read ${s.verdict_answer}`
            : "",
          s.rationale ? `because ${s.rationale}` : "",
        ]
          .filter(Boolean)
          .join(" · "),
      ),
    );

  const mark = () =>
    [...list.children].forEach((node, i) => node.classList.toggle("current", i === at));

  const turn = (to) => {
    offset = to;
    at = -1;
    load().then(() => scrollTo({top: 0}));
  };
  const pages = (total) => {
    const button = (text, to, ok) =>
      el("button", {type: "button", disabled: !ok, onclick: () => turn(to)}, text);
    pager.replaceChildren(
      ...(total > LIMIT
        ? [
            button("← earlier", Math.max(0, offset - LIMIT), offset > 0),
            el(
              "span",
              {},
              ` ${number(offset + 1)} to ${number(Math.min(total, offset + LIMIT))} of ${number(total)} `,
            ),
            button("later →", offset + LIMIT, offset + LIMIT < total),
          ]
        : []),
    );
  };

  let shown = "";
  let newest = 0;
  const load = async () => {
    const mine = ++newest;
    if (wanted.round === "") {
      count.textContent = "No round has samples yet.";
      return;
    }
    history.replaceState(null, "", `?${query({offset})}`);
    const {data} = await selfkd.get(`${api}/samples?${query({offset, limit: LIMIT})}`);
    if (mine !== newest) return;
    const text = JSON.stringify(data.rows);
    if (text !== shown) {
      list.replaceChildren(...data.rows.map(item));
      mark();
    }
    shown = text;
    offer(data);
    pages(data.total);
    count.textContent = data.total
      ? `${number(data.total)} samples. j and k go through them, Enter opens the prompt, n and p turn the page.`
      : "No sample matches.";
  };

  addEventListener("keydown", (e) => {
    if (e.target.closest("input, select, textarea") || e.ctrlKey || e.metaKey || e.altKey) return;
    const total = list.children.length;
    if ((e.key === "j" || e.key === "k") && total) {
      at = Math.min(total - 1, Math.max(0, at + (e.key === "j" ? 1 : -1)));
      list.children[at].focus({preventScroll: true});
      list.children[at].scrollIntoView({block: "nearest"});
      mark();
      e.preventDefault();
    }
    if (e.key === "Enter" && at >= 0 && e.target.tagName === "LI")
      list.children[at].querySelector('a[href*="/prompts/"]').click();
    if (e.key === "n" || e.key === "p") {
      const b = pager.querySelectorAll("button")[e.key === "n" ? 1 : 0];
      if (b && !b.disabled) b.click();
    }
  });

  const form = el(
    "form",
    {class: "filter", onsubmit: (e) => e.preventDefault()},
    Object.entries(fields).map(([name, node]) => el("label", {}, `${titles[name]} `, node)),
  );
  main.append(
    el("h1", {}, "Samples"),
    wanted.policy
      ? el("p", {class: "facts"}, "Only samples of ", selfkd.policyLink(wanted.policy))
      : "",
    form,
    count,
    list,
    pager,
  );
  selfkd.follow(
    () => api,
    async (run) => {
      labels = run.labels;
      const rounds = Object.keys(labels).map(Number);
      const decided = run.rounds.filter((r) => r.kept !== null && r.samples).map((r) => r.round);
      if (wanted.round === "" && rounds.length)
        wanted.round = String(Math.max(...(decided.length ? decided : rounds)));
      if (labels[wanted.round] && !labels[wanted.round].includes(wanted.label))
        wanted.label = labels[wanted.round][0];
      offer(null);
      await load();
    },
  );
})();
