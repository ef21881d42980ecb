"""What one push is to change of a client's contact methods. Pure: nothing is called here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bridge.model import Mode, Value
from bridge.targets.artu.method import METHODS, Method, as_desired, blank
from bridge.targets.artu.owner import Owner
from bridge.targets.base import Job

# Fields that say which client; they are used to find or create one, and nothing of them is ever updated.
NAMES = {"client_name": "name", "client_middle_name": "middleName", "client_last_name": "lastName"}
CLIENT_FIELDS = frozenset({"client_id", "client_external_id", *NAMES})
OPT_OUT = "optOut"

STAFF_HAS_IT = "{}: the client has it already, in a contact method that bridge did not make and leaves as it is."
NOT_FOR_OPTED_OUT = "{}: not added, since the person opted out."
NO_ROOM = "metadata: left out, since the client has no contact method of bridge's own to keep it in."
NO_OPT_OUT = "Artu has no opt-out, so nothing there stops messages to this person; {} metadata.optOut."


@dataclass(slots=True)
class Plan:
    """What is to be written and deleted, and what a person should know."""

    writes: list[Method] = field(default_factory=list)
    deletes: list[Method] = field(default_factory=list)
    clears: set[str] = field(default_factory=set)  # metadata keys that must end up blank
    notes: list[str] = field(default_factory=list)

    @property
    def changes(self) -> bool:
        return bool(self.writes or self.deletes)

    @property
    def added(self) -> list[Method]:
        return [method for method in self.writes if not method.id]

    def missing(self, held: Sequence[Method]) -> list[str]:
        """Return the types of the methods that *held* shows otherwise than planned."""
        wrong = [
            wanted.type
            for wanted in self.writes
            if not any((not wanted.id or wanted.id == one.id) and wanted.says(self._ours(one)) for one in held)
        ]
        gone = {method.id for method in self.deletes}
        return wrong + [f"deletion of {one.type}" for one in held if one.id in gone]

    def _ours(self, method: Method) -> Method:
        """Return *method* without metadata that this plan is not about: others may add theirs meanwhile."""
        about = self.clears.union(*(wanted.metadata for wanted in self.writes))
        return replace(method, metadata={key: value for key, value in method.metadata.items() if key in about})

    def blanked(self, held: Sequence[Method]) -> list[Method]:
        """Return the rows that still have metadata which was left out, with it blanked: here writes merge."""
        rows = []
        for wanted in self.writes:
            for row in (row for row in held if row.external_id == wanted.external_id):
                stuck = [key for key in self.clears - wanted.metadata.keys() if not blank(row.metadata.get(key))]
                if stuck:
                    rows.append(replace(row, metadata={**row.metadata, **dict.fromkeys(stuck, "")}))
        return rows


def plan_for(job: Job, owner: Owner, client_id: str, methods: Sequence[Method]) -> Plan:
    """Say what has to change of *methods*, all that the client has."""
    fields, plan = job.desired.fields, Plan()
    for name in METHODS:
        rows = owner.rows(name, methods)
        now = rows[0] if rows else None
        plan.deletes += rows[1:]  # what an accident made twice
        if now and name in fields and blank(fields[name]):
            plan.deletes.append(now)
            continue
        base = now or _new(job, owner, client_id, name, [*methods, *plan.writes], plan.notes)
        if base is None:
            continue
        wanted = _wanted(job, owner, name, base, methods)
        if now is None or not wanted.says(now):
            plan.writes.append(wanted)
            plan.clears |= base.metadata.keys() - wanted.metadata.keys()
    metadata = _metadata_of(fields)
    kept = [method for method in methods if owner.may_write(method) and method not in plan.deletes]
    if metadata and not kept and not plan.writes:
        plan.notes.append(NO_ROOM)
    if job.desired.opt_out:
        plan.notes.append(NO_OPT_OUT.format("it is kept in" if OPT_OUT in metadata else "a rule can keep it in"))
    return plan


def _new(
    job: Job, owner: Owner, client_id: str, name: str, others: Sequence[Method], notes: list[str]
) -> Method | None:
    """Return the method to add for the field *name*; None, perhaps with a note, if none is to be added."""
    value, kind, mode = job.desired.fields.get(name), owner.type_of(name), job.desired.mode(name)
    if blank(value):
        return None
    if mode is Mode.CREATE_ONLY and job.accepted is not None:
        return None
    if mode is Mode.IF_BLANK and any(method.type == kind for method in others):
        return None
    twins = [method for method in others if method.reaches(kind, str(value))]
    if twins:
        if not any(owner.may_write(twin) for twin in twins):
            notes.append(STAFF_HAS_IT.format(name))
        return None
    if job.desired.opt_out:
        notes.append(NOT_FOR_OPTED_OUT.format(name))
        return None
    primary = not any(method.is_primary and method.type == kind for method in others)
    return Method("", client_id, kind, str(value), primary, "", owner.external_id(name), {})


def _wanted(job: Job, owner: Owner, name: str, base: Method, methods: Sequence[Method]) -> Method:
    """Return what the method of the field *name* should become, from what it is."""
    fields = job.desired.fields
    value, label, kind = fields.get(name), fields.get(f"{name}.label"), owner.type_of(name)
    wanted = replace(base, external_id=owner.external_id(name), metadata=_metadata(job, base))
    if not blank(value) and job.desired.mode(name) is Mode.ALWAYS:
        wanted = replace(wanted, value=str(value), type=kind)
        if kind != base.type:  # it must not take the first place from another one of its new type
            taken = any(method.is_primary and method.type == kind for method in methods)
            wanted = replace(wanted, is_primary=base.is_primary and not taken)
    if not blank(label) and _applies(job, f"{name}.label", base, base.label):
        wanted = replace(wanted, label=str(label))
    return wanted


def _metadata(job: Job, base: Method) -> dict[str, Value]:
    """Return all metadata that the method should have: what is there, changed by the rules."""
    metadata = dict(base.metadata)
    for key, value in _metadata_of(job.desired.fields).items():
        if not _applies(job, f"metadata.{key}", base, metadata.get(key)):
            continue
        if key == OPT_OUT and job.desired.opt_out and metadata.get(key) and not value:
            continue  # a rule that contradicts the opt-out does not lift it
        if blank(value):
            metadata.pop(key, None)
        else:
            metadata[key] = value
    return metadata


def _applies(job: Job, name: str, base: Method, current: object) -> bool:
    mode = job.desired.mode(name)
    if mode is Mode.IF_BLANK:
        return blank(current)
    return mode is Mode.ALWAYS or not base.id


def accepted(job: Job, owner: Owner, client_id: str, held: Sequence[Method]) -> dict[str, Value]:
    """Return what the client holds of the desired fields, in the shapes of the rules."""
    fields = job.desired.fields
    own = {name: rows[0] for name in METHODS if (rows := owner.rows(name, held))}
    shown: dict[str, Value] = {}
    for name, value in fields.items():
        of, _, part = name.partition(".")
        if name in CLIENT_FIELDS:
            shown[name] = client_id if name == "client_id" else value
        elif of == "metadata":
            first = next(iter(own.values()), None)
            shown[name] = as_desired(value, first.metadata.get(part) if first else None)
        else:
            twins = (one for one in held if one.reaches(owner.type_of(of), str(fields.get(of))))
            method = own.get(of) or next(twins, None)
            shown[name] = as_desired(value, (method.label if part else method.value) if method else None)
    return shown


def _metadata_of(fields: Mapping[str, Value]) -> dict[str, Value]:
    return {
        name.removeprefix("metadata."): value for name, value in fields.items() if name.startswith("metadata.")
    }
