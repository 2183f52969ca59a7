from tests.support.pages import laid_out, needs_browser, needs_printer, printed

POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""


@needs_browser
def test_what_does_not_fit_and_what_is_blocked_is_seen(tmp_path):
    wide = (
        f'{POLICY}<body style="margin:0"><div style="width:700px">wide</div><img src="https://example.invalid/a.png">'
    )
    seen = laid_out(wide, window_px=390, folder=tmp_path)
    assert seen.width_px == 700
    assert any("example.invalid" in complaint for complaint in seen.complaints)


@needs_browser
def test_a_table_over_a_plot_and_a_plot_that_is_cut_are_seen(tmp_path):
    plot = '<svg aria-label="plot" style="position:absolute;top:10px;left:10px;width:100px;height:50px"></svg>'
    wide = '<svg aria-label="matrix" style="position:absolute;top:200px;left:300px;width:100px;height:50px"></svg>'
    seen = laid_out(f"<table><tr><td>a score</td></tr></table>{plot}{wide}", window_px=390, folder=tmp_path)
    assert seen.faults == ["TABLE lies over plot", "matrix is cut"]


@needs_printer
def test_the_text_of_each_printed_sheet_is_read(tmp_path):
    first, second = printed("<p>first</p><p style='break-before:page'>second</p>", folder=tmp_path)
    assert ("first" in first, "second" in second) == (True, True)
