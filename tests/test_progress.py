"""What is shown, with and without a terminal."""

import io

from rich.console import Console

from dual_cross_attention.progress import ProgressBar, make_console, track


def test_a_line_is_a_line_where_there_is_no_terminal(capsys):
    make_console().print("word " * 100)
    make_console(stderr=True).print("/a/[red]path[/nope]/:smile:/1e-4")
    out, err = capsys.readouterr()
    assert out == "word " * 100 + "\n"
    assert err == "/a/[red]path[/nope]/:smile:/1e-4\n"


def test_the_bar_is_for_terminals():
    for terminal in (True, False):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=terminal, width=100)
        with ProgressBar("epoch 1/2", 3, console) as advance:
            for _ in range(3):
                advance("loss 1.234")
        assert ("loss 1.234" in stream.getvalue() and "3/3" in stream.getvalue()) == terminal
        assert bool(stream.getvalue()) == terminal


def test_tracked_batches_are_the_batches(capsys):
    assert list(track(iter("abc"), "evaluate", 3, make_console())) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
