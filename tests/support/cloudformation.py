"""The resources that a deployment of the templates creates.

SAM's translator runs in SAM's environment. CloudFormation's functions are evaluated here (AWS
CloudFormation User Guide, "Intrinsic function reference"). Values that only AWS knows, such as
ARNs, are placeholders: `<Function.Arn>`.
"""

import json
import re
import subprocess
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

SAM_PYTHON = ROOT / ".venv-dev" / "bin" / "python"
ROOT_TEMPLATE = ROOT / "template.yaml"
STACK_ID = "0c1b2a3f-7b61-11e6-9a41-93e8deadbeef"
PSEUDO = {
    "AWS::AccountId": "123456789012",
    "AWS::Partition": "aws",
    "AWS::Region": "eu-central-1",
    "AWS::StackId": f"arn:aws:cloudformation:eu-central-1:123456789012:stack/gpt2/{STACK_ID}",
    "AWS::StackName": "gpt2",
    "AWS::URLSuffix": "amazonaws.com",
}
NO_VALUE = object()

# Reads a template and sets of parameters, and prints the output of SAM's transform for each set.
# Image URIs and nested files are replaced as by `sam package`.
_TRANSLATE = """
import json, sys
import boto3
from samcli.yamlhelper import yaml_parse
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
text, variants = json.load(sys.stdin)
for parameters in variants:
    template = yaml_parse(text)
    if "Transform" in template:
        for resource in template["Resources"].values():
            properties = resource.get("Properties", {})
            if resource["Type"] == "AWS::Serverless::Function":
                properties["ImageUri"] = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/gpt2:tag"
            if resource["Type"] == "AWS::Serverless::StateMachine":
                properties["DefinitionUri"] = "s3://bucket/" + properties["DefinitionUri"]
        session = boto3.Session(region_name="eu-central-1")
        template = Translator({}, Parser(), boto_session=session).translate(template, parameters)
    print(json.dumps(template))
"""


@cache
def _translate(path: Path, variants: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [SAM_PYTHON, "-c", _TRANSLATE],
        input=f"[{json.dumps(path.read_text())}, {variants}]",
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def translated(path: Path, **parameters: Any) -> dict[str, Any]:
    """A template after SAM's transform, cached for each value of `Canary`, the only parameter that
    the transform depends on (`test_the_transform_depends_only_on_canary`).
    """
    values = ["false", "true"]
    canary = str(parameters.get("Canary", "false"))
    variants = json.dumps([{"Canary": value} for value in values])
    return _translate(path, variants)[values.index(canary)]


def translate_each(path: Path, variants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A template after SAM's transform, for each set of parameters."""
    return _translate(path, json.dumps(variants))


class Stack:
    """A stack with parameters, and its nested stacks."""

    def __init__(self, path: Path = ROOT_TEMPLATE, /, **parameters: Any) -> None:
        self.path = path
        self.template = translated(path, **parameters)
        declared = self.template.get("Parameters", {})
        assert parameters.keys() <= declared.keys(), parameters.keys() - declared.keys()
        self.parameters = {
            name: str(parameters[name] if name in parameters else spec["Default"])
            for name, spec in declared.items()
        }
        self._nested: dict[str, Stack] = {}

    @cached_property
    def resources(self) -> dict[str, Any]:
        """All created resources, resolved."""
        made = {
            name: resource
            for name, resource in self.template["Resources"].items()
            if "Condition" not in resource or self.holds(resource["Condition"])
        }
        return {name: self.resolve(resource) for name, resource in made.items()}

    def properties(self, name: str) -> dict[str, Any]:
        """The properties of one resource."""
        found = self.resources[name]["Properties"]
        assert isinstance(found, dict)
        return found

    def of_type(self, kind: str) -> dict[str, Any]:
        """The properties of all resources of a type."""
        return {n: r["Properties"] for n, r in self.resources.items() if r["Type"] == kind}

    def nested(self, name: str) -> "Stack":
        """A nested stack with its parameters."""
        if name not in self._nested:
            resource = self.template["Resources"][name]["Properties"]
            given = self.resolve(resource.get("Parameters", {}))
            self._nested[name] = Stack(self.path.parent / resource["TemplateURL"], **given)
        return self._nested[name]

    def output(self, name: str) -> Any:
        """The value of an output."""
        return self.resolve(self.template["Outputs"][name]["Value"])

    def all_resources(self) -> list[tuple[str, dict[str, Any]]]:
        """The resources of this stack and all nested stacks."""
        found = [*self.resources.items()]
        for name, resource in self.resources.items():
            if resource["Type"] == "AWS::CloudFormation::Stack":
                found += self.nested(name).all_resources()
        return found

    def problems(self) -> list[str]:
        """CloudFormation's errors for the parameters, before it creates resources."""
        found = []
        for name, spec in self.template.get("Parameters", {}).items():
            value = self.parameters[name]
            allowed = [str(choice) for choice in spec.get("AllowedValues", [])]
            pattern = spec.get("AllowedPattern")
            if (
                (allowed and value not in allowed)
                or (pattern and not re.fullmatch(pattern, value))
                or len(value) > spec.get("MaxLength", len(value))
                or (spec["Type"] == "Number" and not _within(float(value), spec))
            ):
                found.append(name)
        for rule in self.template.get("Rules", {}).values():
            if self.resolve(rule.get("RuleCondition", True)):
                found += [
                    assertion["AssertDescription"]
                    for assertion in rule["Assertions"]
                    if not self.resolve(assertion["Assert"])
                ]
        return found

    def holds(self, condition: str) -> bool:
        """Whether a condition is true."""
        return bool(self.resolve(self.template["Conditions"][condition]))

    def resolve(self, value: Any) -> Any:
        """Evaluate the functions in a value; values that only AWS knows are `<…>`."""
        if isinstance(value, list):
            return [item for item in map(self.resolve, value) if item is not NO_VALUE]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((name, argument),) = value.items()
            if name == "Condition" and isinstance(argument, str):
                return self.holds(argument)
            function = getattr(self, f"_{name.removeprefix('Fn::').lower()}", None)
            if function and (name.startswith("Fn::") or name == "Ref"):
                return function(argument)
        resolved = {key: self.resolve(item) for key, item in value.items()}
        return {key: item for key, item in resolved.items() if item is not NO_VALUE}

    def _ref(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return NO_VALUE
        if name in PSEUDO:
            return PSEUDO[name]
        if name in self.parameters:
            is_list = self.template["Parameters"][name]["Type"] == "CommaDelimitedList"
            return self.parameters[name].split(",") if is_list else self.parameters[name]
        assert name in self.template["Resources"], name
        return f"<{name}>"

    def _getatt(self, argument: Any) -> Any:
        path = argument if isinstance(argument, str) else ".".join(argument)
        name, _, attribute = path.partition(".")
        if attribute.startswith("Outputs."):
            return self.nested(name).output(attribute.removeprefix("Outputs."))
        assert name in self.template["Resources"], name
        return f"<{name}.{attribute}>"

    def _if(self, argument: Any) -> Any:
        condition, yes, no = argument
        return self.resolve(yes if self.holds(condition) else no)

    def _equals(self, argument: Any) -> bool:
        left, right = map(str, self.resolve(argument))
        return left == right

    def _not(self, argument: Any) -> bool:
        return not self.resolve(argument[0])

    def _and(self, argument: Any) -> bool:
        return all(map(self.resolve, argument))

    def _or(self, argument: Any) -> bool:
        return any(map(self.resolve, argument))

    def _join(self, argument: Any) -> str:
        return str(argument[0]).join(str(item) for item in self.resolve(argument[1]))

    def _split(self, argument: Any) -> list[str]:
        return str(self.resolve(argument[1])).split(argument[0])

    def _select(self, argument: Any) -> Any:
        return self.resolve(argument[1])[int(argument[0])]

    def _sub(self, argument: Any) -> str:
        text, given = (argument, {}) if isinstance(argument, str) else argument
        named = {name: self.resolve(value) for name, value in given.items()}

        def replace(match: re.Match[str]) -> str:
            name = match[1]
            if name in named:
                return str(named[name])
            return str(self._getatt(name) if "." in name else self._ref(name))

        return re.sub(r"\$\{([\w.:]+)\}", replace, text)


def _within(value: float, spec: dict[str, Any]) -> bool:
    return spec.get("MinValue", value) <= value <= spec.get("MaxValue", value)
