"""What of the doctor needs the project's own modules."""

from models.tools import doctor


def test_weights_are_told_with_what_they_enable():
    found = {check.name: check for check in doctor.weight_checks()}
    demo, vit = found["vit_demo_glyphs.safetensors"], found["vit-b-p16-mocov3"]
    assert demo.state == "ok" and "as stated beside it" in demo.words and "of the experiments" in demo.words
    assert vit.state in ("ok", "absent") and "slca_cars_mocov3" in vit.words


def test_a_part_of_the_self_test_that_fails_says_why_and_the_others_go_on(monkeypatch):
    from models.tools import self_test

    def broken(self):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(self_test.SelfTest, "alignment", broken)
    states = {check.name: check for check in doctor.self_test("cpu")}
    assert states["one step"].state == "ok" and states["one alignment"].state == "failed"
    assert "no kernel image is available" in states["one alignment"].words
    assert states["one resume"].state == "failed"


def test_a_device_that_is_not_there_fails_the_self_test_in_one_line():
    (check,) = doctor.self_test("cuda:7")
    assert check.state == "failed" and "cuda" in check.words and "\n" not in check.words
