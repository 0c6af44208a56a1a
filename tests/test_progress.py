import io

from rich.console import Console

from dllm_sweep.progress import LiveDisplay


def test_what_a_worker_does_takes_one_line_however_long_its_trial_is_called():
    shown = LiveDisplay()
    shown.start(units=3, done=1, workers=2)
    shown.unit_started(0, "a-very-long-model-name gptq w4a16-g128 " * 4, "evaluate:tiny_math")
    picture = shown._picture()
    shown.stop()
    out = io.StringIO()
    Console(file=out, width=80).print(picture)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3, "the bar and two workers"
    assert max(map(len, lines)) <= 80
    assert "…" in lines[1]
