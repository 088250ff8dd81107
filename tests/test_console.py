"""What a person reads: phases, the log byte for byte, a summary."""

import io

from gce_backend.console import Console


class Terminal(io.TextIOWrapper):
    def __init__(self):
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def text(self):
        return self.buffer.getvalue().decode("utf-8", "replace")


def test_a_phase_has_its_seconds():
    out = Terminal()

    Console(out=out).phase("booted", 12.34, "detail")

    assert out.text() == "  booted         12.3 s  detail\n"


def test_the_log_comes_through_byte_for_byte_and_a_line_of_ours_starts_afresh():
    out = Terminal()
    console = Console(out=out)

    console.log(b"progress 1\rprogress 2 \xff")
    console.say("next")

    assert out.buffer.getvalue() == b"progress 1\rprogress 2 \xff\nnext\n"


def test_a_table_has_its_values_in_one_column():
    out = Terminal()

    Console(out=out).table("run", {"status": "FINISHED", "instances left": "0"})

    assert out.text() == "run\n  status:         FINISHED\n  instances left: 0\n"


def test_a_quiet_one_still_warns():
    out, err = Terminal(), Terminal()
    console = Console(quiet=True, out=out, err=err)

    console.say("x")
    console.log(b"x")
    console.warn("an instance may bill")

    assert (out.text(), err.text()) == ("", "mlflow-gce: an instance may bill\n")
