from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from tests.support.s3_servers import FaultProxy, S3Server

pytestmark = pytest.mark.s3


def status_of(proxy: FaultProxy, path: str) -> int:
    connection = HTTPConnection(urlsplit(proxy.endpoint).netloc, timeout=30)
    connection.request("GET", path)
    return connection.getresponse().status


def test_a_share_of_all_requests_is_broken_by_faults_of_one_seed(moto_server: S3Server) -> None:
    seen = []
    for _ in range(2):
        with FaultProxy(moto_server.endpoint) as proxy:
            proxy.fail_share(0.2, (503, 500), seed=1)
            answers = [status_of(proxy, f"/none/{number}") for number in range(50)]
            assert proxy.broken() == {503: answers.count(503), 500: answers.count(500)}
            assert proxy.count() == 50
        seen.append(answers)
    assert seen[0] == seen[1]
    assert 3 <= sum(answer >= 500 for answer in seen[0]) <= 20
    assert {answer for answer in seen[0] if answer < 500} == {404}


def test_a_cleared_proxy_breaks_nothing(moto_server: S3Server) -> None:
    with FaultProxy(moto_server.endpoint) as proxy:
        proxy.fail_share(1.0, (503,), seed=1)
        proxy.clear()
        assert status_of(proxy, "/none/0") == 404
        assert not proxy.broken()
