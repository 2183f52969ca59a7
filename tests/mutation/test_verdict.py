"""Laws of the counting of mutants."""

import pytest

from tests.mutation.verdict import LISTED, Change, Mutant, change, equivalents, verdict

TILE = "pipeline/infer/tile.py"
DIFF = """--- pipeline/infer/tile.py
+++ pipeline/infer/tile.py
@@ -{line},2 +{line},2 @@
     y, x = corner
-    return {indent}a + b
+    return {indent}a - b
"""


def mutant(number: int, status: str | None, line: str = "a") -> Mutant:
    return Mutant(f"pipeline.infer.tile.x_cut__mutmut_{number}", status, Change(TILE, "cut", (f"- {line}",)), "a diff")


def summary(mutants: list[Mutant], listed: dict[Change, str] | None = None) -> str:
    return verdict(TILE, mutants, listed or {})[0][-1]


def test_a_change_is_the_same_wherever_its_function_moves_to():
    moved = [
        change(TILE, f"pipeline.infer.tile.x_cut__mutmut_{number}", DIFF.format(line=line, indent=""))
        for number, line in ((1, 3), (7, 90))
    ]
    assert moved[0] == moved[1] == Change(TILE, "cut", ("- return a + b", "+ return a - b"))


def test_a_method_is_named_with_its_class():
    assert change(TILE, "pipeline.infer.tile.xǁGridǁplace__mutmut_2", "").function == "Grid.place"


def test_an_entry_of_the_list_is_found_for_its_change():
    text = f"# a comment\n\n{TILE} cut\n-  return a + b\n+  return a - b\nb is 0 wherever\nit is called\n"
    read = equivalents(text)
    assert read == {Change(TILE, "cut", ("- return a + b", "+ return a - b")): "b is 0 wherever it is called"}


@pytest.mark.parametrize("entry", [f"{TILE}\n- a\nwhy", f"{TILE} cut\nwhy", f"{TILE} cut\n- a\n+ b"])
def test_an_entry_without_function_lines_or_reason_is_refused(entry: str):
    with pytest.raises(ValueError, match="an entry is a line"):
        equivalents(entry)


def test_the_list_of_this_project_can_be_read():
    equivalents(LISTED.read_text())


def test_nine_of_ten_noticed_are_enough_and_eight_are_not():
    nine = [mutant(number, "killed") for number in range(9)] + [mutant(9, "survived")]
    assert verdict(TILE, nine, {})[1]
    assert not verdict(TILE, [*nine[1:], mutant(10, "survived")], {})[1]


def test_a_survivor_is_printed_with_its_diff_and_a_noticed_one_is_not():
    lines, _ = verdict(TILE, [mutant(1, "killed"), mutant(2, "survived")], {})
    assert len(lines) == 2
    assert "mutmut_2" in lines[0]
    assert "a diff" in lines[0]


def test_time_outs_and_crashes_are_noticed_and_counted_apart():
    mutants = [mutant(1, "killed"), mutant(2, "timeout"), mutant(3, "segfault")]
    assert summary(mutants).endswith("3 of 3 noticed, 100.0%; 1 timeout; 1 segfault")


def test_a_mutant_that_no_test_calls_has_survived_and_is_counted_apart():
    assert summary([mutant(1, "no tests"), mutant(2, "killed")]).endswith("1 of 2 noticed, 50.0%; 1 no tests")


def test_a_survivor_that_is_the_same_program_does_not_count():
    listed = {Change(TILE, "cut", ("- same",)): "because"}
    assert "1 of them the same program; 1 of 1 noticed" in summary(
        [mutant(1, "survived", "same"), mutant(2, "killed")], listed
    )


def test_mutants_outside_the_sample_do_not_count():
    assert "2 mutants, 1 sampled" in summary([mutant(1, None), mutant(2, "killed")])


def test_a_listed_mutant_that_a_test_notices_fails_the_run():
    listed = {Change(TILE, "cut", ("- same",)): "because"}
    lines, enough = verdict(TILE, [mutant(1, "killed", "same")], listed)
    assert not enough
    assert "lists it, but a test noticed it" in lines[0]


def test_an_entry_that_fits_no_mutant_any_longer_fails_the_run_of_its_module_alone():
    listed = {Change(TILE, "cut", ("- gone",)): "because"}
    assert not verdict(TILE, [mutant(1, "killed")], listed)[1]
    assert verdict("pipeline/infer/views.py", [mutant(1, "killed")], listed)[1]
