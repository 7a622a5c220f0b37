"""The packages whose text is measured, by version and digest. Nothing of them is kept in this repository.

npm: (name, version, sha512 as the registry gives it); PyPI: (name, file, sha256).
"""

# Lists that ReDoS tools test themselves with.
TOOLS_NPM = [
    ("safe-regex", "1.1.0", "aJXcif4xnaNUzvUuC5gcb46oTS7zvg4jpMTnuqtrEPlR3vFr4pxtdTwaF1Qs3Enjn9HK+ZlwQui+a7z0SywIzg=="),
    ("safe-regex", "2.1.1", "rx+x8AMzKb5Q5lQ95Zoi6ZbJqwCLkqi3XuJXp5P3rT8OEc6sZCJG5AE5dU3lsgRr/F4Bs31jSlVN+j5KrsGu9A=="),
    (
        "safe-regex2",
        "2.0.0",
        "PaUSFsUaNNuKwkBijoAPHAK6/eM6VirvyPWlZ7BAQy4D+hCvh4B6lIG+nPdhbFfIbP+gTGBcrdsOaUs0F+ZBOQ==",
    ),
    (
        "safe-regex2",
        "5.1.2",
        "tAtCGFPPP02VroDVzp4daGi6bC7jWG+41D47GKf18FeH/ubvKQHT9VmhAkvtjNOmJwqtApzWeUpEhkyEYULvmw==",
    ),
    (
        "vuln-regex-detector",
        "1.3.0",
        "QWm8buVznZjdcfMuFHYsiNfHd0YQ7dO41G0iEGVPlUng5eZUo8uy+QsVCmbgVZ2b96xprY1Tz9dQD7QtvbFHXw==",
    ),
]
TOOLS_PYPI = [
    ("redoctor", "redoctor-0.1.5.tar.gz", "992aeb5cac07d5c49120dd6b1f1261142f9f534a0352d2a3756a91eb14f55022"),
    ("redos", "redos-0.1.0.tar.gz", "dfc76eb19c4711f9c8d29393cb996954f5579ec4ea6b1bb6c90629f6a55a8b5b"),
]
# Releases with published ReDoS advisories; CodeQL's own list is largely drawn from such.
ADVISORIES_NPM = [
    ("prismjs", "1.22.0", "lLJ/Wt9yy0AiSYBf212kK3mM5L8ycwlyTlSxHBAneXLR0nzFMlZ5y7riFPF3E33zXOF2IH95xdY5jIyZbM9z/w=="), ("highlight.js", "9.18.1", "OrVKYz70LHsnCgmbXctv/bfuvntIKDz177h0Co37DQ5jamGZLVmoCVMtjMtNZY3X9DrCcKfklHPNeA0uPZhSJg=="), ("marked", "0.3.9", "nW5u0dxpXxHfkHzzrveY45gCbi+R4PaO4WRZYqZNl+vB0hVGeqlFn0aOg1c8AKL63TrNFn9Bm2UP4AdiZ9TPLw=="), ("validator", "13.5.0", "swCJwyC4QdPvk16CagC126fqi6V6PRYTawdSc+F+eQv58uS1cmggGMPTKc6QQ90YFGsWjWgiGcSTmzx96p2U6Q=="),
    ("ua-parser-js", "0.7.22", "YUxzMjJ5T71w6a8WWVcMGM6YWOTX27rCoIQgLXiWaxqXSx9D7DNjiGWn1aJIRSQ5qr0xuhra77bSIh6voR/46Q=="), ("moment", "2.15.1", "VRuqlq9ET3eUjWkqgZtUegkYF664TRWaxmgwlHxboe653wv4stNaVKDufNfCDcGFu1EA2Bm26bD0NWLaFMHfvA=="), ("ansi-regex", "5.0.0", "bY6fj56OUQ0hU1KjFNDQuJFezqKdrAyFdIevADiqrWHwSlbmBNMHp5ak2f40Pm8JTFyM2mqxkG6ngkHO11f/lg=="), ("glob-parent", "5.1.1", "FnI+VGOpnlGHWZxthPGR+QhR78fuiK0sNLkHQv+bL9fQi57lNNdquIbna/WrfROrolq8GK5Ek6BiMwqL/voRYQ=="),
    ("is-svg", "4.2.1", "PHx3ANecKsKNl5y5+Jvt53Y4J7MfMpbNZkv384QNiswMKAWIbvcqbPz+sYbFKJI8Xv3be01GSFniPmoaP+Ai5A=="), ("ssri", "6.0.1", "3Wge10hNcT1Kur4PDFwEieXSCMCJs/7WvSACcrMYrNp+b8kDL1/0wJch5Ni2WrtwEa2IO8OsVfeKIciKCDx/QA=="), ("hosted-git-info", "2.8.8", "f/wzC2QaWBs7t9IYqB4T3sR1xviIViXJRJTWBlx2Gf3g0Xi5vI7Yy4koXQ1c9OYDGHN9sBy1DQ2AB8fqZBWhUg=="), ("postcss", "8.2.9", "b+TmuIL4jGtCHtoLi+G/PisuIl9avxs8IZMSmlABRwNz5RLUUACrC+ws81dcomz1nRezm5YPdXiMEzBEKgYn+Q=="),
    ("path-parse", "1.0.6", "GSmOT2EbHrINBf9SR7CDELwlJ8AENk3Qn7OikK4nFYAu3Ote2+JYNVvkpAEQm3/TLNEJFD/xZJjzyxg3KBWOzw=="), ("nth-check", "2.0.0", "i4sc/Kj8htBrAiH1viZ0TgU8Y5XqCaV/FziYK6TBczxmeKm3AEFWqqF3195yKudrarqy7Zu80Ra5dobFjn9X/Q=="), ("css-what", "4.0.0", "teijzG7kwYfNVsUh2H/YN62xW3KK9YhXEgSlbxMlcyjPNvdKJqFx5lrwlJgoFP1ZHlB89iGDlo/JyshKeRhv5A=="), ("color-string", "1.5.3", "dC2C5qeWoYkxki5UAXapdjqO672AM4vZuPGRQfO8b5HKuKGBbKWpITyDYN7TOFKvRW7kOgAn3746clDBMDJyQw=="),
    ("codemirror", "5.57.0", "WGc6UL7Hqt+8a6ZAsj/f1ApQl3NPvHY/UQSzG6fB6l4BjExgVdhFaxd7mRTw1UCiYe/6q86zHP+kfvBQcZGvUg=="), ("knockout", "3.5.0", "vBUF/IsBDzaejHkNpiquKdc5uPrImXuQ4Mb9lEfNNJ5cyHGI8ThDupR+h3eMFZhfmPE/brfwcIAn/fm0yOvJUg=="), ("jsonschema", "1.2.6", "SqhURKZG07JyKKeo/ir24QnS4/BV7a6gQy93bUSe4lUdNp0QNpIz2c9elWJQ9dpc5cQYY6cvCzgRwy0MQCLyqA=="), ("string", "3.3.3", "LbvprpPZT/39QKfNrlPX9vXtS7If80vqbPQ7clnHQb5oVOM5hz/cs3iQCCZjvQDwsAWl+HpLQX3gRgN6IC8t3g=="),
    ("useragent", "2.2.1", "VfMTzrCvxNEd/lcWvSXKYcCJNOL+d0lJEL7TWJ1GsQWspx858E/qUJucW05k+/C1evJ5AjIEvTodibhNA4Dqsw=="), ("showdown", "1.9.1", "9cGuS382HcvExtf5AHk7Cb4pAeQQ+h0eTr33V1mu+crYWV4KvWAw6el92bDrqGEk5d46Ai/fhbEUwqJ/mTCNEA=="), ("ajv", "6.12.2", "k+V+hzjm5q/Mr8ef/1Y9goCmlsK4I6Sm74teeyGvFk1XrOsbsKLjEdrvny42CZ+a8sXbk8KWpY/bDwS+FLL2UQ=="), ("brace-expansion", "1.1.6", "do+EUHPJZmz1wYWxOspwBMwgEqs0T5xSClPfYRwug3giEKZoiuMN9Ans1hjT8yZZ1Dkx1oaU4yRe540HKKHA0A=="),
]  # fmt: skip
ADVISORIES_PYPI = [
    ("pygments", "Pygments-2.7.3.tar.gz", "ccf3acacf3782cbed4a989426012f1c535c9a90d3a7fc3f16d231b9372d2b716"),
    ("markdown2", "markdown2-2.3.9.tar.gz", "89526090907ae5ece66d783c434b35c29ee500c1986309e306ce2346273ada6a"),
    ("ua-parser", "ua-parser-0.9.0.tar.gz", "be17242abcd4f3d11543e9b82826f152b47c724623a32bb94ce02e549b0cfce2"),
]
CURRENT_NPM = [
    (
        "validator",
        "13.15.35",
        "TQ5pAGhd5whStmqWvYF4OjQROlmv9SMFVt37qoCBdqRffuuklWYQlCNnEs2ZaIBD1kZRNnikiZOS1eqgkar0iw==",
    ),
    ("marked", "18.2.1", "ii4bxCTCqqwpT86XZWgJNs+ZnAIZksmLGYMViWA7PDIXYIeNo1x6cDdX3JOip9NM/cI6p8z57FxliACboTruMA=="),
]
# The oracle, and the parser that finds the patterns in JavaScript.
ORACLE = (
    "recheck",
    "4.5.0",
    "kPnbOV6Zfx9a25AZ++28fI1q78L/UVRQmmuazwVRPfiiqpMs+WbOU69Shx820XgfKWfak0JH75PUvZMFtRGSsw==",
)
ACORN = ("acorn", "8.14.0", "cl669nCJTZBsL97OF4kUQm5g5hC2uihk0NxY3WENAC0TYdILVkAyHymAntgxGkl7K+t0cXIrH5siy5S4XkFycA==")
