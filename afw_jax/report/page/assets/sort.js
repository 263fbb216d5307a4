// Sorts the rows of a table by the column whose heading is pressed, by mouse or keyboard; again turns the order.
'use strict';
(() => {
  const NUMBER = /^[<>]?\s*([-+]?(?:\d+(?:\.\d+)?(?:e[-+]?\d+)?|inf\b))/;
  const text = (row, column) => row.cells[column].textContent.trim();
  const missing = (value) => value === '-' || value === '';

  function sort(table, column, heading) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const direction = heading.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
    const numeric = column > 0 && rows.every((row) => missing(text(row, column)) || NUMBER.test(text(row, column)));
    const value = (row) => Number(NUMBER.exec(text(row, column))[1].replace('inf', 'Infinity'));
    rows.sort((a, b) => {
      const [x, y] = [text(a, column), text(b, column)];
      if (missing(x) || missing(y)) return missing(x) - missing(y); // at the end in either order
      return direction * (numeric ? value(a) - value(b) : x.localeCompare(y, undefined, { numeric: true }));
    });
    for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
    heading.setAttribute('aria-sort', direction > 0 ? 'ascending' : 'descending');
    body.append(...rows);
  }

  for (const table of document.querySelectorAll('main table')) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      heading.querySelector('button').addEventListener('click', () => sort(table, column, heading));
    });
  }
})();
