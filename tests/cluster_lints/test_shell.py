import pytest

from dllm_sweep.cluster_lints.shell import Install, installs, option, syntax_error, variable


@pytest.mark.parametrize(
    ("command", "packages", "constraints"),
    [
        ("pip install ray==2.60.0", ("ray==2.60.0",), ()),
        ("python3 -m pip install -q --user 'uv==1.0'", ("uv==1.0",), ()),
        ("uv pip install --python ~/v/bin/python -c c.txt a b", ("a", "b"), ("c.txt",)),
        ("sudo pip3 install --constraint=c.txt a", ("a",), ("c.txt",)),
        ("which ray || pip install -r requirements.txt", (), ("requirements.txt",)),
        ("cd x && pip install --index-url https://x.org/simple a", ("a",), ()),
    ],
)
def test_installations_are_read_in_any_spelling(command, packages, constraints):
    assert list(installs(command)) == [Install(packages, constraints)]


@pytest.mark.parametrize("command", ["apt-get install gcc", "echo pip", "ls install"])
def test_other_commands_install_no_packages(command):
    assert list(installs(command)) == []


@pytest.mark.parametrize(
    "command", ["ray start --port=1", "ray start --port 1", 'x; ray --port="1"']
)
def test_options_are_read_in_any_spelling(command):
    assert option(command, "--port") == "1"


def test_an_option_is_not_taken_for_a_longer_one():
    assert option("ray start --object-manager-port=1", "--port") is None


@pytest.mark.parametrize("command", ["A=1 ray start", "x; A='1' y", 'export A="1"; y', "B=2 A=1 y"])
def test_variables_are_read_in_any_spelling(command):
    assert variable(command, "A") == "1"


def test_bash_is_asked_about_syntax():
    assert syntax_error("echo 'a b'") is None
    assert "unexpected EOF" in syntax_error("echo 'a b")
