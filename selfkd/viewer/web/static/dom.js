// Elements, numbers and data. Text from runs only ever becomes a text node: never HTML.
const selfkd = {};

// el("a", {href: "/", class: "x", onclick: f}, "text", child, ...)
selfkd.el = (name, attributes, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "color") node.style.setProperty("--color", value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(
    ...children
      .flat(Infinity)
      .filter((c) => c !== null && c !== undefined && c !== false)
      .map((c) => (c instanceof Node ? c : document.createTextNode(String(c)))),
  );
  return node;
};

selfkd.number = (value, digits = 3) => {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2);
  return size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : value.toFixed(digits);
};
selfkd.share = (value) =>
  value === null || value === undefined
    ? "–"
    : `${(100 * value).toFixed(value && Math.abs(value) < 0.1 ? 1 : 0)} %`;
selfkd.signed = (value) =>
  value === null || value === undefined
    ? "–"
    : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);
selfkd.sum = (values) => values.reduce((a, b) => a + (b || 0), 0);

selfkd.path = (...parts) => "/" + parts.map(encodeURIComponent).join("/");
selfkd.run = document.body ? document.body.dataset.run : "";

selfkd.say = (text, bad = false) => {
  const notice = document.getElementById("notice");
  if (!notice || notice.textContent === text) return;
  notice.textContent = text;
  notice.className = text ? (bad ? "notice bad" : "notice") : "";
};

selfkd.get = async (url) => {
  let answer;
  try {
    answer = await fetch(url, {headers: {Accept: "application/json"}});
  } catch {
    throw new Error("the server does not answer: was `selfkd ui` ended?");
  }
  const text = await answer.text();
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    data = {error: text.slice(0, 300)};
  }
  if (!answer.ok) throw new Error(data.error || `the server answered ${answer.status}`);
  return {data, tag: answer.headers.get("ETag")};
};

// Calls `show` with what `url` holds, now and whenever that changed; says in words what fails. It
// waits ten times as long as the last answer took: the cores belong to the run.
selfkd.follow = (url, show, seconds = 2) => {
  let seen = null;
  let wait = seconds;
  const ask = async () => {
    if (!document.hidden || seen === null) {
      try {
        const start = performance.now();
        const {data, tag} = await selfkd.get(url());
        if (tag !== seen) await show(data);
        seen = tag;
        wait = Math.min(60, Math.max(seconds, (performance.now() - start) / 100));
        selfkd.say("");
      } catch (error) {
        selfkd.say(error.message, true);
        wait = Math.min(30, wait * 2);
      }
      document.getElementById("main").removeAttribute("aria-busy");
    }
    setTimeout(ask, wait * 1000);
  };
  ask();
};

selfkd.state = (run) => selfkd.el("span", {class: `state ${run.state}`}, run.state);

selfkd.csv = (columns, rows) => {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    // A spreadsheet runs what starts like a formula: quote it, as text.
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return (
    [columns.map((c) => cell(c.key)), ...rows.map((row) => columns.map((c) => cell(row[c.key])))]
      .map((cells) => cells.join(","))
      .join("\n") + "\n"
  );
};

selfkd.download = (name, text, type = "text/csv") => {
  const url = URL.createObjectURL(new Blob([text], {type}));
  const link = selfkd.el("a", {href: url, download: name});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
};

// Scrolls within itself and by keyboard, so that the page never scrolls sideways.
selfkd.table = (columns, rows, {caption, limit = Infinity} = {}) => {
  const {el} = selfkd;
  const head = el(
    "tr",
    {},
    columns.map((c) => el("th", {scope: "col", class: c.text ? "text" : null}, c.title || c.key)),
  );
  const body = rows.slice(0, limit).map((row) =>
    el(
      "tr",
      {},
      columns.map((c) => {
        const value = row[c.key];
        const shown = c.show
          ? c.show(value, row)
          : typeof value === "number"
            ? selfkd.number(value)
            : (value ?? "–");
        return el(
          "td",
          {
            "data-key": c.key,
            "data-value": typeof value === "number" ? String(value) : null,
            class: c.text ? "text" : null,
          },
          shown,
        );
      }),
    ),
  );
  const named = el("caption", {}, el("span", {class: "unseen"}, caption || "Table"));
  const table = el("table", {}, named, el("thead", {}, head), el("tbody", {}, body));
  return el(
    "div",
    {class: "scroll", tabindex: "0", role: "region", "aria-label": caption || "table"},
    table,
  );
};
