// Every regular expression written in the JavaScript files named on standard input, one JSON line each:
// node literals.cjs ACORN < files
const acorn = require(process.argv[2]);
const fs = require("fs");
function* nodes(node) {
  if (Array.isArray(node)) { for (const item of node) yield* nodes(item); return; }
  if (!node || typeof node.type !== "string") return;
  yield node;
  for (const key of Object.keys(node)) if (key !== "regex" && typeof node[key] === "object") yield* nodes(node[key]);
}
for (const file of fs.readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const text = fs.readFileSync(file, "utf8");
  let tree = null;
  for (const sourceType of ["module", "script"]) {
    try { tree = acorn.parse(text, { ecmaVersion: "latest", sourceType, allowHashBang: true, allowReturnOutsideFunction: true }); break; } catch { /* the other kind */ }
  }
  if (!tree) continue;
  for (const node of nodes(tree)) {
    let found = null;
    if (node.type === "Literal" && node.regex) found = [node.regex.pattern, node.regex.flags];
    else if ((node.type === "NewExpression" || node.type === "CallExpression") && node.callee.name === "RegExp") {
      const [source, flags] = node.arguments;
      if (source && typeof source.value === "string") found = [source.value, flags && typeof flags.value === "string" ? flags.value : ""];
    }
    if (found) console.log(JSON.stringify(found));
  }
}
