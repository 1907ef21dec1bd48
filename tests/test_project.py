"""What surrounds the package agrees with it: workflows, hooks, commands, pages."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import txmail

ROOT = Path(txmail.__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / ".github").is_dir(), reason="the sources are not a clone: .github is missing"
)
WORKFLOWS = ["docs", "package", "release", "tests"]
READ_ONLY = {"contents": "read"}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def read_yaml(path):
    yaml = pytest.importorskip("yaml", reason="PyYAML, of the extra lint, is not installed")
    return yaml.safe_load((ROOT / path).read_text())


def read_workflow(name):
    workflow = read_yaml(f".github/workflows/{name}.yml")
    workflow["on"] = workflow.pop(True)  # YAML 1.1 reads `on` as a truth value
    return workflow


def steps_of(workflow):
    return [step for job in workflow["jobs"].values() for step in job.get("steps", [])]


# Workflows


def test_all_workflows_are_tested_here():
    assert sorted(p.stem for p in (ROOT / ".github/workflows").iterdir()) == WORKFLOWS


def test_the_tests_run_on_the_versions_of_the_classifiers_and_on_the_next(project):
    classifiers = re.findall(
        r"Python :: (3\.\d+)$", "\n".join(project["project"]["classifiers"]), re.MULTILINE
    )
    job = read_workflow("tests")["jobs"]["default"]
    assert job["strategy"]["matrix"]["python"] == [*classifiers, "3.14"]
    assert project["project"]["requires-python"] == f">={classifiers[0]}"
    assert project["tool"]["ruff"]["target-version"] == "py" + classifiers[0].replace(".", "")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_do_little_ends_and_runs_alone(name):
    workflow = read_workflow(name)
    assert workflow["permissions"] == READ_ONLY
    assert workflow["concurrency"]["group"].startswith(name)
    assert not {"pull_request_target", "workflow_run"} & set(workflow["on"])
    for job in workflow["jobs"].values():
        assert "timeout-minutes" in job or job["uses"].startswith("./.github/workflows/")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_an_action_is_named_by_its_commit(name):
    text = (ROOT / f".github/workflows/{name}.yml").read_text()
    used = [line.strip() for line in text.splitlines() if re.search(r"\buses: (?!\./)", line)]
    commits = [re.fullmatch(r"- uses: ([\w/-]+)@([0-9a-f]{40}) # v[\d.]+", line) for line in used]
    assert all(commits), used


def test_an_action_has_the_same_commit_in_all_workflows():
    used = {step["uses"] for name in WORKFLOWS for step in steps_of(read_workflow(name))
            if "uses" in step}  # fmt: skip
    assert len(used) == len({action.partition("@")[0] for action in used})


def test_a_release_needs_a_tag_the_tests_and_an_environment_and_no_secret():
    workflow = read_workflow("release")
    assert list(workflow["on"]) == ["push"]
    assert list(workflow["on"]["push"]) == ["tags"]
    publish = workflow["jobs"].pop("publish")
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"] == "pypi"
    assert sorted(publish["needs"]) == sorted(workflow["jobs"]) == ["package", "tests"]
    assert not [step for step in publish["steps"] if "checkout" in step.get("uses", "")]
    for job in workflow["jobs"].values():
        assert "permissions" not in job
    for name in WORKFLOWS:
        assert "secrets" not in (ROOT / f".github/workflows/{name}.yml").read_text()


def test_the_full_run_says_which_packages_it_installs():
    script = (ROOT / ".ci/install").read_text()
    needed = set(re.findall(r"^needs \S+ (\S+)$", script, re.MULTILINE))
    needed |= set(re.findall(r"missing\+=\(([a-z][\w-]+)\)", script))
    assert len(needed) > 8
    text = (ROOT / ".github/workflows/tests.yml").read_text()
    comment = " ".join(re.findall(r"^  # (.*)$", text, re.MULTILINE))
    assert needed <= set(re.findall(r"[\w-]+", comment))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_script_that_a_workflow_runs_is_there(name):
    commands = [step["run"] for step in steps_of(read_workflow(name)) if "run" in step]
    for script in re.findall(r"\.ci/\w+", "\n".join(commands)):
        assert os.access(ROOT / script, os.X_OK), script


# Commands and hooks


def programs_of_the_lint_extra(project):
    """The programs in `bin` of what the extra `lint` and the extras that it names ask for."""
    extras = project["project"]["optional-dependencies"]
    wanted, seen = ["lint"], set()
    programs = set()
    while wanted:
        seen.add(extra := wanted.pop())
        for requirement in extras[extra]:
            name, _, names = re.match(r"([\w.-]+)(\[([\w,]+)\])?", requirement).groups()
            if name == "txmail":
                wanted += set(names.split(",")) - seen
                continue
            for file in importlib.metadata.files(name) or []:
                if file.parent.name == "bin" and file.parts[0] == "..":
                    programs.add(file.name)
    return programs


@pytest.fixture(scope="module")
def programs(project):
    pytest.importorskip("pre_commit", reason="the extra lint is not installed")
    return programs_of_the_lint_extra(project)


def is_there(command, programs):
    """Whether the project, or the environment that CONTRIBUTING makes, has a command."""
    program, *arguments = command.split()
    if program.startswith(".ci/"):
        return os.access(ROOT / program, os.X_OK)
    if program == "python":
        return (ROOT / arguments[0]).is_file()
    return program in {*programs, "git", "txmail"}


def commands_of_contributing():
    text = (ROOT / ".github/CONTRIBUTING.rst").read_text()
    rows = text.partition("\ntask  ")[2].partition("\n\n")[0].splitlines()[2:-1]
    return [re.search(r"  ``(.+?)``  ", row).group(1) for row in rows]


def test_the_commands_of_contributing_are_there(programs):
    commands = commands_of_contributing()
    assert len(commands) > 10
    assert [command for command in commands if not is_there(command, programs)] == []


def test_contributing_has_all_scripts():
    scripts = {f".ci/{path.name}" for path in (ROOT / ".ci").iterdir()}
    assert scripts - {".ci/install"} <= set(commands_of_contributing())


def test_the_hooks_run_the_programs_of_the_environment(programs):
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        assert is_there(hook["entry"], programs), hook["entry"]


def test_ci_runs_what_contributors_and_workflows_run():
    script = (ROOT / ".ci/run").read_text()
    for part in (".ci/lint", ".ci/docs", ".ci/package"):
        assert re.search(rf"^PATH=\$bin:\$PATH {re.escape(part)}$", script, re.MULTILINE)


def test_a_new_migration_follows_the_newest(tmp_path):
    pytest.importorskip("alembic")
    from txmail.queue import schema

    migrations = Path(schema.__file__).with_name("migrations")
    shutil.copytree(migrations, tmp_path / migrations.relative_to(ROOT))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = [
        sys.executable,
        "-m",
        "alembic",
        "revision",
        "--rev-id",
        "9999",
        "-m",
        "What changes",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    (made,) = tmp_path.rglob("v9999_what_changes.py")
    namespace = {}
    exec(compile(made.read_text(), made, "exec"), namespace)
    assert namespace["__doc__"] == "What changes."
    assert (namespace["revision"], namespace["down_revision"]) == ("9999", schema.VERSION)
    assert namespace["min_version"] is None


# Pages


def test_each_page_is_in_the_table_of_contents():
    docs = ROOT / "docs"
    pages = {p.relative_to(docs).with_suffix("").as_posix() for p in docs.rglob("*.rst")}
    contents = re.findall(r"^    ([\w/-]+)$", (docs / "index.rst").read_text(), re.MULTILINE)
    assert sorted(contents) == sorted(pages - {"index"})


def pages():
    folders = ("docs", "benchmarks", ".github")
    return [
        *ROOT.glob("*.rst"),
        *(path for name in folders for path in (ROOT / name).rglob("*.rst")),
    ]


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_link_to_a_file_leads_to_a_file(page):
    for target in re.findall(r"<([\w./-]+\.\w+)>`__?", page.read_text()):
        assert (page.parent / target).is_file(), target
