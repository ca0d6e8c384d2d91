"""What is wrong, odd, or only rare in a request, piece by piece.

What occurs several times is chosen more often. {f} stands for the target of a file in the cache,
{upstream} for a host that is passed through, and {own} for the gateway.
"""

from __future__ import annotations

from tests.support.raw_http import listed

METHODS = [
    *[b"GET"] * 12,
    *[b"HEAD"] * 3,
    *[b"POST"] * 2,
    *listed(r"""
    PUT ~ DELETE ~ OPTIONS ~ TRACE ~ PATCH ~ CONNECT ~ PRI ~ PURGE ~ get ~ GeT ~ head ~ connect ~ G ~ GETT
    <nothing> ~ G\x00T ~ G(T ~ \xc7ET ~ \rGET ~ \nGET ~ \r\n\r\nGET ~ \x20GET ~ \x16\x03\x01\x00\x05
    \x00 ~ M-SEARCH ~ SOURCE ~ PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET
    """),
]
TARGETS = [
    *[b"{f}"] * 24,
    *[b"http://{upstream}/p"] * 4,
    *listed(r"""
    {f}?version=5 ~ {f}?a=b&c ~ {f}#x ~ {f}%00 ~ {f}\x00 ~ {f}\xff ~ {f}\t ~ {f} x ~ {f}\\ ~ /test.cvd
    /test-5.cdiff ~ //test.cvd ~ /./test.cvd ~ /x/../test.cvd ~ /%2e%2e/test.cvd ~ /te%73t.cvd
    /test.cvd/ ~ /..%2f..%2fetc/passwd ~ /livez ~ / ~ * ~ <nothing> ~ test.cvd ~ ?x
    HTTP://database.clamav.net/test.cvd ~ http://DATABASE.clamav.NET/test.cvd ~ http:/test.cvd
    https://database.clamav.net/test.cvd ~ http://database.clamav.net ~ http://database.clamav.net?x
    http://database.clamav.net:/test.cvd ~ http://database.clamav.net:80/test.cvd ~ ftp://x/test.cvd
    http://database.clamav.net:99999/x ~ http://database.clamav.net:0/x ~ http://database.clamav.net:+80/x
    http://database.clamav.net./test.cvd ~ http://database.clamav.net:080/test.cvd ~ http://:80/x
    http://database.clamav.net@{upstream}/p ~ http://u:p@database.clamav.net/test.cvd ~ http://[::1]/x
    http://elsewhere.example/x ~ http://{own}/livez ~ http://database.clamav.net\\@{upstream}/p
    http://{upstream} ~ http://{upstream}?q ~ http://{upstream}/p#x ~ http://{upstream}/\xe4
    //{upstream}/p ~ database.clamav.net:80 ~ database.clamav.net:443 ~ database.clamav.net ~ {upstream}
    x:22 ~ database.clamav.net:8080 ~ DATABASE.CLAMAV.NET:80 ~ database.clamav.net.:80
    u@database.clamav.net:80
    """),
]
SPACES = [
    *[b" "] * 20,
    *listed(r"""
    \x20\x20 ~ \t ~ \x0b ~ \x0c ~ \x20\r ~ \xa0 ~ <nothing> ~ \x00
    """),
]
VERSIONS = [
    *[b"HTTP/1.1"] * 20,
    *[b"HTTP/1.0"] * 4,
    *listed(r"""
    HTTP/0.9 ~ HTTP/1.2 ~ HTTP/1.9 ~ HTTP/2.0 ~ HTTP/2 ~ HTTP/3.0 ~ http/1.1 ~ HTTP/1.1\x20 ~ HTTP/11
    HTTP/1.10 ~ HTTP/01.1 ~ HTTP/1. ~ HTTP/-1.1 ~ HTTP /1.1 ~ ICE/1.0 ~ RTSP/1.0 ~ HTTP/1.1\t ~ <nothing>
    X
    """),
]
ENDS = [
    *[b"\r\n"] * 40,
    *listed(r"""
    \n ~ \r ~ \r\r\n ~ \x20\r\n ~ \n\r ~ \r\n\x20 ~ \x00\r\n ~ <nothing>
    """),
]
HOSTS = [
    *[b"Host: database.clamav.net"] * 16,
    *listed(r"""
    Host: x ~ Host: ~ Host:\x20 ~ host:x ~ HOST: X ~ Host : x ~ \x20Host: x ~ Host: a b ~ Host: a,b
    Host: {upstream} ~ Host: {own} ~ Host: x:99999 ~ Host: x: ~ Host: [::1] ~ Host: [::1 ~ Host: u@x
    Host: x\r\nHost: x ~ Host: x\r\nhost: {upstream} ~ Host: \xe4 ~ Host: x\x00 ~ Host: x/y ~ Host: %41
    Host:\tx ~ Host: x\t\x20 ~ Host:\x0bx ~ Host: x\x0b ~ Host:\r\n x ~ X: y ~ Host: x\x7f
    """),
]
FIELDS = [
    *[b"Connection: close"] * 3,
    *(b"X: " + b"y" * 3000, b"X: " + b"y" * 5000, b"X: " + b"y" * 40_000, b"\r\n".join([b"X: y"] * 300)),
    *listed(r"""
    Range: bytes=0-9 ~ Range: bytes=-5 ~ Range: bytes=9-0 ~ Range: bytes=0-1,3-4 ~ Range: lines=0-1
    Range: bytes=99999999999999999999- ~ Range: bytes=0-\r\n 9 ~ Range: bytes=\xb2-9 ~ Range: bytes = 0-9
    Range: bytes=0-9\r\nRange: bytes=1-2 ~ range:bytes=0-9 ~ Range: BYTES=0-9 ~ Range: bytes=0-0_9
    If-Modified-Since: Thu, 01 Jan 2099 00:00:00 GMT ~ If-Modified-Since: 0 ~ If-None-Match: *
    If-None-Match: "x" ~ If-Range: x ~ If-Match: "x" ~ If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT
    Connection: keep-alive ~ Connection: x, close ~ Connection: Close, ~ Connection:\tclose\t
    Connection: ~ Connection: Range ~ Connection: Host ~ Connection: Content-Length
    Connection: close\x0b ~ connection: CLOSE ~ Connection: keep-alive\r\nConnection: close
    Connection: "close" ~ Connection: close\r\n x ~ Proxy-Connection: close ~ Proxy-Connection: Keep-Alive
    Keep-Alive: timeout=1 ~ TE: trailers ~ Connection: Upgrade\r\nUpgrade: h2c ~ Upgrade: websocket
    Upgrade: TLS/1.0 ~ HTTP2-Settings: AAMAAABk ~ Expect: 100-continue ~ Expect: x ~ expect:100-Continue
    Max-Forwards: 0 ~ Max-Forwards: 1 ~ X-Forwarded-For: 127.0.0.1 ~ Forwarded: for=127.0.0.1
    X-HTTP-Method-Override: PUT ~ Via: 1.1 x ~ X : y ~ X\t: y ~ \x20X: y ~ \tX: y ~ : y ~ X ~ X:y
    X: y\x00 ~ X: \xff ~ X\xff: y ~ X: y\r ~ X:\ry ~ X: y\r\n z ~ X: y\r\n\tz ~ X: y\r\n \r\n z ~ X: \x01
    X: \x7f ~ X(: y ~ X\x00: y ~ X: y\nZ: a ~ \xef\xbb\xbfX: y ~ User-Agent: ClamAV/1.4.6
    User-Agent: a\xffb ~ User-Agent: \x01 ~ User-Agent: ~ User-Agent: a\tb ~ user-agent: x
    User-Agent: x\r\nUser-Agent: y ~ User-Agent: * ~ Authorization: Basic eDp5
    Proxy-Authorization: Basic eDp5 ~ Accept-Encoding: gzip ~ Cache-Control: no-cache
    Cache-Control: only-if-cached ~ Trailer: Host
    """),
]
CONTENT = [
    *[(b"Content-Length: 3", b"abc")] * 3,
    *[(b"Transfer-Encoding: chunked", b"3\r\nabc\r\n0\r\n\r\n")] * 3,
    (b"Content-Length: 0", b""),
    (b"Content-Length: \xb2", b"ab"),
    (b"Content-Length: 1_0", b"abcdefghij"),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 6", b"0\r\n\r\nG"),
]
"""Fields that announce content, and the content."""
CONTENT += [
    (length, b"abc")
    for length in listed(r"""
    Content-Length: 00003 ~ Content-Length: 3\r\nContent-Length: 3 ~ Content-Length: 3, 3
    Content-Length: 3\r\nContent-Length: 0 ~ Content-Length: 0\r\nContent-Length: 3 ~ Content-Length: +3
    Content-Length: -3 ~ Content-Length: 0x3 ~ Content-Length: 3\x20 ~ Content-Length : 3
    Content-Length:\t3 ~ Content-Length:\x0b3 ~ Content-Length: 3\x0c ~ Content-Length: 3\x00
    Content-Length:\x20 ~ Content-Length:\r\n 3 ~ Content-Length: 99999999999999999999
    Content-Length: 18446744073709551619 ~ Content-Length: 4294967299 ~ Content_Length: 3
    """)
]
CONTENT += [
    (coding, b"0\r\n\r\n")
    for coding in listed(r"""
    Content-Length: 4\r\nTransfer-Encoding: chunked ~ Content-Length: 5\r\nTransfer-Encoding : chunked
    Transfer-Encoding: xchunked ~ Transfer-Encoding: Chunked
    Transfer-Encoding: chunked\r\nTransfer-Encoding: identity
    Transfer-Encoding: identity\r\nTransfer-Encoding: chunked ~ Transfer-Encoding: gzip, chunked
    Transfer-Encoding: chunked, chunked ~ Transfer-Encoding: identity ~ Transfer-Encoding:\tchunked
    Transfer-Encoding:\x0bchunked ~ Transfer-Encoding: chunked\x0b ~ Transfer-Encoding:\r\n chunked
    Transfer-Encoding: "chunked" ~ Transfer-Encoding: ,chunked, ~ Transfer-Encoding:
    X: y\nTransfer-Encoding: chunked ~ X: y\rTransfer-Encoding: chunked ~ Transfer-Encoding: chunked;q=1
    """)
]
CONTENT += [
    (b"Transfer-Encoding: chunked", content)
    for content in listed(r"""
    3;a=b\r\nabc\r\n0\r\n\r\n ~ 3;a="\n"\r\nabc\r\n0\r\n\r\n ~ 3 \r\nabc\r\n0\r\n\r\n
    \x203\r\nabc\r\n0\r\n\r\n ~ 0x3\r\nabc\r\n0\r\n\r\n ~ +3\r\nabc\r\n0\r\n\r\n ~ -3\r\nabc\r\n0\r\n\r\n
    \xb3\r\nabc\r\n0\r\n\r\n ~ 3\nabc\n0\n\n ~ 3\r\nabcd\r\n0\r\n\r\n ~ 3\r\nabc0\r\n\r\n ~ \r\n0\r\n\r\n
    00000000000000000000003\r\nabc\r\n0\r\n\r\n ~ FFFFFFFFFFFFFFFFF\r\nabc
    10000000000000003\r\nabc\r\n0\r\n\r\n ~ 0\r\nX: y\r\n\r\n
    0\r\nContent-Length: 5\r\nHost: {upstream}\r\n\r\n ~ 0\r\nX y\r\n\r\n ~ 0\r\n\r ~ 0
    """)
]
ODD_BYTES = listed(r"""
    \x00 ~ \x01 ~ \t ~ \n ~ \x0b ~ \x0c ~ \r ~ \x20 ~ : ~ \x7f ~ \x80 ~ \xa0 ~ \xff ~ \r\n ~ \r\n\r\n
""")
