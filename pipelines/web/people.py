"""Who may do what on the pages: roles of people, from a YAML file or from the names of their groups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.yaml_text import NotYaml, load_yaml

PersonRole = Literal["viewer", "department", "admin"]

GROUP_PREFIX = "vocbeam:"
"""Groups that say a role by their name alone: vocbeam:viewer, vocbeam:admin, vocbeam:department:logistics."""


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who is signed in. A viewer reads; a department also acts on what is its own; an admin on everything."""

    name: str
    role: PersonRole
    departments: frozenset[str] = frozenset()

    def may_act_for(self, department: str) -> bool:
        """Whether this person may act on a department's flags and cases."""
        return self.role == "admin" or (self.role == "department" and department in self.departments)


class Grant(BaseModel):
    """What one person or group may do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: PersonRole
    departments: frozenset[str] = Field(default=frozenset())

    @model_validator(mode="after")
    def _departments_belong_to_their_role(self) -> Grant:
        if (self.role == "department") != bool(self.departments):
            raise ValueError("`departments` belong to the role `department`, and to no other")
        return self


class People(BaseModel):
    """The people file: grants by person and by group, and what everyone else who signs in may do (None: nothing)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    people: dict[str, Grant] = Field(default={})
    groups: dict[str, Grant] = Field(default={})
    everyone: Literal["viewer"] | None = None

    def person(self, name: str, groups: Iterable[str]) -> Person | None:
        """The person of this name; None where nothing is granted. A grant by name replaces those of groups."""
        by_name = self.people.get(name)
        grants = [by_name] if by_name else [grant for group in groups if (grant := self._of_group(group))]
        if not grants:
            return Person(name, self.everyone) if self.everyone else None
        departments = frozenset[str]().union(*(grant.departments for grant in grants))
        roles = {grant.role for grant in grants}
        role: PersonRole = "admin" if "admin" in roles else "department" if departments else "viewer"
        return Person(name, role, departments)

    def known_groups(self, groups: Iterable[str]) -> list[str]:
        """Those of the groups that grant something."""
        return sorted({group for group in groups if self._of_group(group)})

    def _of_group(self, group: str) -> Grant | None:
        if group in self.groups:
            return self.groups[group]
        match group.removeprefix(GROUP_PREFIX).split(":") if group.startswith(GROUP_PREFIX) else ():
            case ["viewer"]:
                return Grant(role="viewer")
            case ["admin"]:
                return Grant(role="admin")
            case ["department", department] if department:
                return Grant(role="department", departments=frozenset({department}))
        return None


def load_people(path: Path) -> People:
    """The people file at `path`. Raises ConfigError, which names file, place and problem."""
    try:
        return People.model_validate(load_yaml(path.read_text(encoding="utf-8")) or {})
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the people file {path} can't be read: {error}") from error
    except NotYaml as error:
        raise ConfigError(error.at(str(path))) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "top"
        raise ConfigError(f"{path}, {where}: {first['msg']}") from error
