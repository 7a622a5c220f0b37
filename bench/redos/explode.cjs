// Does node's own engine hang? node explode.cjs SOURCE FLAGS TEXT (killed by the caller when it takes too long)
new RegExp(process.argv[2], process.argv[3]).test(process.argv[4]);
