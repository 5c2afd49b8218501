// One version of the model: what it learnt from, and what it then wrote.
(() => {
  const {el, number} = selfkd;
  const main = document.getElementById("main");
  const name = decodeURIComponent(location.pathname.split("/policies/")[1]);
  const api = selfkd.path("api", "runs", selfkd.run, "policies", name);
  const place = el("div");
  let offset = 0;
  main.append(place);

  const fact = (title, value) => [el("dt", {}, title), el("dd", {}, value)];
  const rounds = (list, label, policy) =>
    list.length
      ? list.map((r, i) => [
          i ? ", " : "",
          selfkd.samplesLink({round: r, label, policy}, `round ${r}`),
        ])
      : "none yet";

  const example = (e) =>
    el(
      "li",
      {},
      e.samples.map((s, i) => [
        el(
          "div",
          {class: "row-head"},
          el(
            "span",
            {class: "meta"},
            e.samples.length === 2 ? (i ? "rejected, " : "chosen, ") : "",
            `by `,
            selfkd.policyLink(s.policy),
            ` in round ${s.round}`,
            e.weight !== 1 ? `, weight ${number(e.weight)}` : "",
          ),
          selfkd.promptLink(e.prompt_id, s.id, "the sample and its prompt"),
        ),
        el("pre", {class: "said clip"}, selfkd.visible(s.completion)),
      ]),
    );

  const show = (p) => {
    const gate = p.gate
      ? `${p.gate.decision.replace("_", " ")} (held-out ${selfkd.signed(p.gate.delta)} against ${p.gate.best}, p of a fall ${number(p.gate.p_value)})`
      : "not gated";
    const turn = (to) => {
      offset = to;
      ask();
    };
    place.replaceChildren(
      el("h1", {}, `Policy ${p.policy}`),
      el(
        "dl",
        {class: "fields"},
        p.made_in === null
          ? fact("made", "the model that the run started from")
          : [
              fact("trained in round", number(p.made_in)),
              fact("started from", selfkd.policyLink(p.start)),
              fact(
                "learnt from",
                `${number(p.examples)} examples in ${number(p.steps)} optimiser steps`,
              ),
              fact("gate", gate),
              p.pruned ? fact("weights", "pruned: only this record stays") : "",
            ],
        fact("its samples", rounds(p.sampled_in, "", p.policy)),
        fact("its held-out answers", rounds(p.heldout_in, "heldout", p.policy)),
      ),
      p.total ? el("h2", {}, "What it learnt from") : "",
      p.total
        ? el(
            "p",
            {class: "hint"},
            `${number(p.offset + 1)} to ${number(p.offset + p.examples_page.length)} of ${number(p.total)} examples`,
          )
        : "",
      el("ol", {class: "samples"}, p.examples_page.map(example)),
      p.total > 100
        ? el(
            "nav",
            {class: "pager", "aria-label": "Pages"},
            el(
              "button",
              {type: "button", disabled: !offset, onclick: () => turn(Math.max(0, offset - 100))},
              "← earlier",
            ),
            " ",
            el(
              "button",
              {
                type: "button",
                disabled: offset + 100 >= p.total,
                onclick: () => turn(offset + 100),
              },
              "later →",
            ),
          )
        : "",
    );
  };

  const ask = async () => {
    const {data} = await selfkd.get(`${api}?offset=${offset}`);
    show(data);
  };
  selfkd.follow(() => `${api}?offset=${offset}`, show);
})();
