// A click on a header, or Enter or the space bar on it, sorts the table's rows by that column; the page reads the same without this.
const UNITS = { B: 1, KiB: 1024, MiB: 1024 ** 2, GiB: 1024 ** 3, M: 1e6, s: 1, min: 60, h: 3600 };
function numberIn(text) { // "79.72", "1,290", "1.24 MiB", "13.2 s", with a spread behind it or without; NaN for words
  const found = /^([+-]?[\d,]*\.?\d+)( \u00b1 [\d.]+)?( [A-Za-z]+)?$/.exec(text);
  return found === null ? NaN : parseFloat(found[1].replaceAll(",", "")) * (UNITS[(found[3] ?? "").trim()] ?? 1);
}
function sortBy(header) {
  const table = header.closest("table"), rows = [...table.rows].slice(1), column = header.cellIndex;
  const up = header.getAttribute("aria-sort") !== "ascending";
  const value = (row) => row.cells[column].textContent.trim();
  rows.sort((a, b) => {
    const [x, y] = [value(a), value(b)], [m, n] = [numberIn(x), numberIn(y)];
    if (isNaN(m) !== isNaN(n)) return isNaN(m) ? 1 : -1;
    return (up ? 1 : -1) * (isNaN(m) ? x.localeCompare(y) : m - n);
  });
  for (const other of table.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  rows.forEach((row) => row.parentNode.append(row));
}
for (const header of document.querySelectorAll("th[scope=col]")) {
  header.tabIndex = 0;
  header.addEventListener("click", () => sortBy(header));
  header.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sortBy(header); } });
}
