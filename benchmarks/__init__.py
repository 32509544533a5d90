"""Where the README's figures come from: `make bench`, or `make bench ONLY=processor`.

Each benchmark prints JSON objects, one a line: `{"benchmark": .., "value": .., "unit": .., "baseline": .., "ratio":
.., ...}`. Machines are shared and noisy, so each takes its baseline in the same run and the ratio is what to compare.
"""
