// A click on a header, or Enter on it, sorts the table's rows by that column; the page reads the same without this.
function sortBy(header) {
  const table = header.closest("table"), rows = [...table.rows].slice(1), column = header.cellIndex;
  const up = header.getAttribute("aria-sort") !== "ascending";
  const value = (row) => row.cells[column].textContent.trim();
  const number = (text) => parseFloat(text.replaceAll(",", ""));
  rows.sort((a, b) => {
    const [x, y] = [value(a), value(b)], [m, n] = [number(x), number(y)];
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
  header.addEventListener("keydown", (event) => { if (event.key === "Enter") sortBy(header); });
}
