"""Operations of a compiled program, read from its text."""

import re

# Branches and loops, with the attributes that name the computations they run.
INSIDE = {
    "while": r"body=%?([\w.\-]+)",
    "call": r"to_apply=%?([\w.\-]+)",
    "conditional": r"(?:true_computation|false_computation)=%?([\w.\-]+)",
}


def operations(text):
    """The operations that a program starts: `(times, kind, line)` each, fusions as one.

    `times` is the product of the trip counts of the loops around it; None where one isn't known.
    Both branches of a condition count.
    """
    blocks, name, entry = {}, None, None
    for line in text.splitlines():
        if opening := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = opening[1]
            blocks[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name and " = " in line:
            blocks[name].append(line)

    def walk(name, times):
        for line in blocks[name]:
            operation = re.search(r" ([a-z][\w\-]*)\(", line.split(" = ", 1)[1])
            kind = operation[1] if operation else ""
            if kind not in INSIDE:
                yield times, kind, line
                continue
            inner = times
            if kind == "while":
                trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                inner = times * int(trips[1]) if trips and times is not None else None
            branches = re.search(r"branch_computations=\{([^}]*)\}", line)
            called = re.findall(INSIDE[kind], line)
            called += re.findall(r"[\w.\-]+", branches[1]) if branches else []
            for block in called:
                yield from walk(block, inner)

    return list(walk(entry, 1))
