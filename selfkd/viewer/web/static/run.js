// A run: its state, alarms, figures and policies, drawn anew as it goes on.
(() => {
  const {el} = selfkd;
  const main = document.getElementById("main");
  const url = selfkd.path("api", "runs", selfkd.run);
  const place = {
    spoken: el("p", {class: "unseen", role: "status", "aria-live": "polite"}),
    head: el("div"),
    alarms: el("div"),
    plots: el("section", {class: "figures", "aria-label": "Figures"}),
    policies: el("section", {class: "panel", "aria-label": "Policies"}),
  };
  main.append(place.spoken, place.head, place.alarms, place.plots, place.policies);

  // For who listens: what is new, not every count that moved.
  const speak = (run) => {
    const step = run.current
      ? `round ${run.current.round}: ${run.current.verb} ${run.current.label}`
      : "";
    const alarm = run.alarms.length ? run.alarms[run.alarms.length - 1] : null;
    const text = [run.state, step, alarm ? `alarm in round ${alarm.round}: ${alarm.message}` : ""]
      .filter(Boolean)
      .join("; ");
    if (place.spoken.textContent !== text) place.spoken.textContent = text;
  };

  selfkd.follow(
    () => url,
    async (run) => {
      speak(run);
      place.head.replaceChildren(...selfkd.runHead(run));
      place.alarms.replaceChildren(...selfkd.alarmList(run));
      selfkd.figures(place.plots, selfkd.plots(run, selfkd.lastShapes || null));
      place.policies.replaceChildren(...selfkd.policyList(run));
      const {data} = await selfkd.get(`${url}/shapes`);
      selfkd.lastShapes = data;
      selfkd.figures(place.plots, selfkd.plots(run, data));
    },
  );
})();
