from tests.support.pages import laid_out, needs_browser

POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""


@needs_browser
def test_what_does_not_fit_and_what_is_blocked_is_seen(tmp_path):
    wide = (
        f'{POLICY}<body style="margin:0"><div style="width:700px">wide</div><img src="https://example.invalid/a.png">'
    )
    seen = laid_out(wide, window_px=390, folder=tmp_path)
    assert seen.width_px == 700
    assert any("example.invalid" in complaint for complaint in seen.complaints)
