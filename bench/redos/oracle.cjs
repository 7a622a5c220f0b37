// What recheck says of each [source, flags] line on standard input: node oracle.cjs RECHECK MILLISECONDS
// Answers [status, complexity, attack string, prefix/pump pairs, suffix], a line each.
const { checkSync } = require(process.argv[2]);
const timeout = Number(process.argv[3]);
require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const [source, flags] = JSON.parse(line);
  let answer;
  try {
    const said = checkSync(source, flags, { timeout });
    const attack = said.attack || {};
    const pumps = (attack.pumps || []).map((pump) => [pump.prefix, pump.pump]);
    answer = [said.status, said.complexity ? said.complexity.type : "", pumps, attack.suffix || "", said.error ? said.error.kind : ""];
  } catch (error) { answer = ["unknown", "", [], "", String(error)]; }
  console.log(JSON.stringify(answer));
});
