/* Tables: sorted by the buttons of their headers, filtered, cut to their first rows until all are asked for. */

const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

/* Fields of the CSV that Python wrote: quotes only where they are needed, every line ended by a line feed. */
function parseCsv(text) {
  const rows = [];
  let row = [];
  for (const [, field, end] of text.matchAll(/("(?:[^"]|"")*"|[^,\n]*)(,|\n)/gy)) {
    row.push(field.startsWith('"') ? field.slice(1, -1).replaceAll('""', '"') : field);
    if (end === "\n") {
      rows.push(row);
      row = [];
    }
  }
  return rows;
}

/* Number(""), which is 0, must not stand for a value that is missing. */
function sortKey(field, numeric) {
  if (field === "") return null;
  if (!numeric) return field;
  const infinite = { inf: Infinity, "-inf": -Infinity };
  return field in infinite ? infinite[field] : Number(field);
}

function searchable(text) {
  return text.toLowerCase().replaceAll("−", "-");
}

function makeRow(texts, numeric) {
  const row = document.createElement("tr");
  texts.forEach((text, place) => {
    const cell = document.createElement("td");
    cell.textContent = text;
    if (numeric[place]) cell.className = "n";
    row.append(cell);
  });
  return row;
}

/* Every row with its cells as text, its keys to sort by, and its element, made when it is first shown. */
function readRows(body, data) {
  const fields = parseCsv(data.csv).slice(1);
  const drawn = Array.from(body.rows, (element) => ({
    element,
    texts: Array.from(element.cells, (cell) => cell.textContent),
  }));
  const rows = drawn.concat(data.rest.map((texts) => ({ element: null, texts })));
  return rows.map((row, number) => ({
    ...row,
    keys: fields[number].map((field, place) => sortKey(field, data.numeric[place])),
    search: searchable(row.texts.join("\n")),
  }));
}

/* Missing values come last in both directions; rows that are equal keep their order. */
function sorted(rows, place, direction, numeric) {
  const compare = numeric ? (a, b) => a - b : (a, b) => collator.compare(a, b);
  const has = rows.filter((row) => row.keys[place] !== null);
  const lacks = rows.filter((row) => row.keys[place] === null);
  return has.sort((a, b) => direction * compare(a.keys[place], b.keys[place])).concat(lacks);
}

function startTable(box) {
  const body = box.querySelector("tbody");
  const data = JSON.parse(box.querySelector("script").textContent);
  const filter = box.querySelector("[data-filter]");
  const count = box.querySelector("[data-count]");
  const all = box.querySelector("[data-all]");
  const original = readRows(body, data);
  let ordered = original;
  let shown = data.shown;

  function show(limit, wanted) {
    const rows = ordered.filter((row) => row.search.includes(wanted));
    for (const row of rows.slice(0, limit)) row.element ??= makeRow(row.texts, data.numeric);
    body.replaceChildren(...rows.slice(0, limit).map((row) => row.element));
    if (all) all.hidden = rows.length <= limit;
    if (count) {
      const some = rows.length === original.length ? "" : `${rows.length} of `;
      const cut = rows.length > limit ? `, the first ${limit} shown` : "";
      count.textContent = `${some}${original.length} rows${cut}`;
    }
  }

  function refresh() {
    show(shown, filter ? searchable(filter.value.trim()) : "");
  }

  const headers = Array.from(box.querySelectorAll("th"));
  headers.forEach((header, place) => {
    header.querySelector("button").addEventListener("click", () => {
      const ascending = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach((other) => other.setAttribute("aria-sort", "none"));
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      ordered = sorted(original, place, ascending ? 1 : -1, data.numeric[place]);
      refresh();
    });
  });
  filter?.addEventListener("input", refresh);
  all?.addEventListener("click", () => {
    shown = Infinity;
    refresh();
    box.querySelector(".scroll").focus();
  });
  refresh();
  return { showAll: () => show(Infinity, ""), refresh };
}

/* Paper has no buttons: all rows are printed, whatever was filtered. */
function startTables() {
  const tables = Array.from(document.querySelectorAll("[data-table]"), startTable);
  const printed = () => tables.forEach((table) => table.showAll());
  const back = () => tables.forEach((table) => table.refresh());
  window.addEventListener("beforeprint", printed);
  window.addEventListener("afterprint", back);
  window.matchMedia("print").addEventListener("change", (event) => (event.matches ? printed() : back()));
}
