"""The forward pass of a class as a person writes it: short chains nested, the main path in `x`, branches named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from keyword import iskeyword

from nas import ops
from nas.export.classes import Class, Line
from nas.export.python import WIDTH, Call, Expr, Infix, layout, text
from nas.export.tree import Group, Half, Loop

NEST = 3  # calls in one another
JOINS = (ops.Add, ops.Mul, ops.Concat)
RESERVED = {"self", "torch", "nn", "Tensor", "layer", "features"}


@dataclass
class _Statement:
    """Lines computed in one statement. `targets`: the values that get a variable; none of a return."""

    lines: list[Line]
    targets: list[str]


def forward(cls: Class, flags: Mapping[str, str], *, root: bool = False) -> list[str]:
    """The lines of the body, indented by 8. `flags`: the attribute that says whether a conditional line is there."""
    return _Writer(cls, flags, root).body()


def inputs(arity: int) -> list[str]:
    """The names of the arguments of a forward pass."""
    return list("xyz"[:arity]) if arity <= 3 else [f"x{k}" for k in range(arity)]


class _Writer:
    def __init__(self, cls: Class, flags: Mapping[str, str], root: bool) -> None:
        self.cls, self.flags, self.root = cls, flags, root
        self.lines = {line.id: line for line in cls.lines}
        self.reads = Counter(ref for line in cls.lines for ref in line.inputs)
        self.reads[cls.output] += 1
        self.apart: set[str] = set()  # lines whose statement became too long with them inside another
        while True:
            self.inlined: set[str] = set()
            self.statements = list(self._statements())
            self.names = self._variables()
            long = {ref for s in self.statements if not self._fits(s) for ref in self._inside(s.lines[-1])}
            if not long:
                break
            self.apart |= long

    def body(self) -> list[str]:
        """The statements as lines of Python."""
        out: list[str] = []
        for statement in self.statements:
            out += self._lines(statement)
        if not self.statements or self.statements[-1].targets:
            out.append(f"        return {self._value(self.cls.output)}")
        return out

    def _lines(self, statement: _Statement) -> list[str]:
        last = statement.lines[-1]
        if isinstance(last.step.what, Loop):
            return self._loop(last, statement)
        if len(statement.targets) == 2:
            names = ", ".join(self.names[target] for target in statement.targets)
            return layout(f"{self._object(last.inputs[0])}.chunk(2, dim=1)", 8, f"{names} = ")
        before = f"{self.names[last.id]} = " if statement.targets else "return "
        return layout(self._expression(last), 8, before)

    def _fits(self, statement: _Statement) -> bool:
        """Whether a statement is one line, or one call with its arguments on one line."""
        lines = self._lines(statement)
        short = len(lines) in (1, 3) and all(len(line) <= WIDTH for line in lines)
        return short or isinstance(statement.lines[-1].step.what, Loop)

    def _inside(self, line: Line) -> set[str]:
        """The lines that stand inside this one's statement."""
        found = {ref for ref in line.inputs if ref in self.inlined}
        return found.union(*(self._inside(self.lines[ref]) for ref in found))

    # -- which lines are one statement -----------------------------------------------------------------------------

    def _statements(self) -> Iterator[_Statement]:
        chains = self._chains()
        self.short = {c[0].id for c in chains if len(c) == 1 and c[0].step.is_module and self.reads[c[0].id] == 1}
        for chain in chains:
            pieces = _pieces(chain)
            if len(pieces) > 1 and len(pieces[0]) == 1 and isinstance(pieces[0][0].step.what, ops.Concat):
                pieces[:2] = [pieces[0] + pieces[1]]
            whole = len(chains) == 1
            if len(pieces) <= (3 if whole else 2) and len(chain) <= NEST and not (self.root and not whole):
                pieces = [chain]
            for piece in pieces:
                last = piece[-1]
                self.inlined |= {line.id for line in piece[:-1]}
                if len(pieces) == 1 and self._fits_into_reader(last, len(piece)):
                    self.inlined.add(last.id)
                elif isinstance(last.step.what, Half) and (pair := self._halves(last)):
                    if pair[0] is last:
                        yield _Statement([last], [line.id for line in sorted(pair, key=_is_second)])
                else:
                    final = last.id == self.cls.output
                    yield _Statement(piece, [] if final else [last.id])

    def _chains(self) -> list[list[Line]]:
        """Runs of lines that each do nothing but read the one before."""
        chains: dict[str, list[Line]] = {}
        for line in self.cls.lines:
            before = line.inputs[0]
            if len(line.inputs) == 1 and before in chains and self.reads[before] == 1 and self._continues(line, before):
                chain = chains.pop(before)
            else:
                chain = []
            chains[line.id] = [*chain, line]
        return list(chains.values())

    def _continues(self, line: Line, before: str) -> bool:
        apart = (Loop, Half)
        kinds = (line.step.what, self.lines[before].step.what)
        if before in self.apart:
            return False
        return before not in self.flags and line.id not in self.flags and not any(isinstance(k, apart) for k in kinds)

    def _fits_into_reader(self, line: Line, length: int) -> bool:
        """Whether an operand is short enough to stand inside a sum or product of two."""
        free = line.id not in self.flags and line.id not in self.apart
        if self.reads[line.id] != 1 or line.id == self.cls.output or not free or length > 2 or self.root:
            return False
        reader = next(r for r in self.cls.lines if line.id in r.inputs)
        if reader.id in self.flags or not isinstance(reader.step.what, JOINS) or not line.step.is_module:
            return False
        others = [ref for ref in reader.inputs if ref != line.id]
        if len(others) <= 3 and all(ref in self.short or ref.startswith("#") for ref in others):
            return length == 1 or all(ref.startswith("#") for ref in others)
        return length == 1 and len(others) == 1 and others[0] not in self.inlined

    def _halves(self, line: Line) -> list[Line]:
        """Both halves of one value, the one computed first in front."""
        pair = [other for other in self.cls.lines if isinstance(other.step.what, Half) and other.inputs == line.inputs]
        return pair if len(pair) == 2 else []

    # -- names -----------------------------------------------------------------------------------------------------

    def _variables(self) -> dict[str, str]:
        """A name for every value that has a variable; a value takes over the variable of one that ends with it."""
        last_read = {ref: at for at, s in enumerate(self.statements) for ref in self._operands(s)}
        last_read[self.cls.output] = len(self.statements)
        arity = len(self.cls.groups[0].inputs)
        threads = {f"#{k}": k for k in range(arity)}
        ends: dict[int, list[str]] = {}
        for at, statement in enumerate(self.statements):
            operands = self._operands(statement)
            alive = {threads[ref] for ref in threads if last_read.get(ref, -1) > at}
            dying = [ref for ref in operands if last_read[ref] == at and (len(alive) < 2 or threads[ref] >= arity)]
            if len(statement.targets) == 2:
                dying = []
            for target in statement.targets:
                threads[target] = threads[dying[0]] if dying else len(set(threads.values()))
                ends.setdefault(threads[target], []).append(target)
        names = dict(enumerate(inputs(arity)))
        fresh = [thread for thread in ends if thread >= arity]
        for thread in fresh:
            name = "y" if len(fresh) == 1 and arity == 1 else self._name(ends[thread])
            while name in names.values() or name in RESERVED:
                name += "_"
            names[thread] = name
        return {value: names[thread] for value, thread in threads.items()}

    def _name(self, values: list[str]) -> str:
        """For a variable that holds these one after the other: the words they begin with, or else the last's name."""
        if isinstance(self.lines[values[0]].step.what, Half):
            values = values[:1]
        words = [value.replace(".", "_").split("_") for value in values]
        common = [a[0] for a in takewhile(lambda same: len(set(same)) == 1, zip(*words, strict=False))]
        name = "_".join(common or words[-1]).strip("_")
        return name if name.isidentifier() and not iskeyword(name) else f"part{name}"

    def _operands(self, statement: _Statement) -> list[str]:
        """The variables that a statement reads, in order."""
        found: list[str] = []
        queue = list(statement.lines[-1].inputs)
        while queue:
            ref = queue.pop(0)
            if ref in self.inlined:
                queue = [*self.lines[ref].inputs, *queue]
            else:
                found.append(ref)
        return found

    # -- expressions -----------------------------------------------------------------------------------------------

    def _value(self, ref: str) -> str:
        return text(self._expression(self.lines[ref])) if ref in self.inlined else self.names[ref]

    def _object(self, ref: str) -> str:
        """A value as something that has methods."""
        plain = ref not in self.inlined or not isinstance(self._expression(self.lines[ref]), Infix)
        return self._value(ref) if plain else f"({self._value(ref)})"

    def _expression(self, line: Line) -> Expr:
        what, read = line.step.what, [self._value(ref) for ref in line.inputs]
        if isinstance(what, ops.Add | ops.Mul) and not isinstance(what, ops.Mean):
            found: Expr = Infix("*" if isinstance(what, ops.Mul) else "+", tuple(read))
        elif isinstance(what, ops.Mean):
            found = Infix("/", (f"({' + '.join(read)})", str(len(read))))
        elif isinstance(what, ops.Concat):
            found = Call("torch.cat", (Call("", tuple(read), "[]"), "dim=1"))
        elif isinstance(what, ops.Flatten):
            found = f"{self._object(line.inputs[0])}.flatten(1)"
        elif isinstance(what, Half):
            found = f"{self._object(line.inputs[0])}.chunk(2, dim=1)[{int(what.second)}]"
        else:
            found = Call(f"self{_path(line.name)}", tuple(read))
        if line.id in self.flags:
            return f"{text(found)} if self.{self.flags[line.id]} else {read[line.bypass]}"
        return found

    def _loop(self, line: Line, statement: _Statement) -> list[str]:
        read = self._value(line.inputs[0])
        only = all(other is line or not other.step.is_module for other in self.cls.lines)
        append = "features.append(layer(torch.cat(features, dim=1)))"
        out = [f"features = [{read}]"]
        if only:
            out += ["for layer in self.children():", f"    {append}"]
        else:
            named = f'if name.startswith("{line.name}"):'
            out += ["for name, layer in self.named_children():", f"    {named}", f"        {append}"]
        before = f"{self.names[line.id]} =" if statement.targets else "return"
        out.append(f"{before} torch.cat(features, dim=1)")
        return [f"        {line}" for line in out]


def _path(name: str) -> str:
    first, *rest = name.split(".")
    head = f"[{first}]" if first.isdecimal() else f".{first}"
    return head + "".join(f'["{part}"]' for part in rest)


def _is_second(line: Line) -> bool:
    return isinstance(line.step.what, Half) and line.step.what.second


def _pieces(chain: list[Line]) -> list[list[Line]]:
    """A chain cut where a reader takes a breath: around blocks, after activations (before norms, where they lead)."""
    leads = isinstance(chain[0].step.what, ops.Norm | ops.Activation | ops.PReLU)
    closing = (ops.Conv, ops.Linear) if leads else (ops.Activation, ops.PReLU)
    pieces: list[list[Line]] = [[]]
    for line in chain:
        block = isinstance(line.step.what, Group)
        if pieces[-1] and (block or len(pieces[-1]) == NEST):
            pieces.append([])
        pieces[-1].append(line)
        if block or isinstance(line.step.what, (*closing, ops.Flatten)):
            pieces.append([])
    return [piece for piece in pieces if piece]
