"""Ed25519 verification as RFC 8032, section 5.1.7 has it: slow, and nothing but arithmetic."""

import hashlib

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
BASE_Y = 4 * pow(5, -1, P) % P
Point = tuple[int, int]


def _x(y: int, odd: int) -> int:
    """The x of -x^2 + y^2 = 1 + d x^2 y^2 with that parity."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    if root * root % P != square:
        root = root * pow(2, (P - 1) // 4, P) % P
    if root * root % P != square:
        raise ValueError("no point of the curve")
    return root if root % 2 == odd else P - root


def _add(a: Point, b: Point) -> Point:
    product = D * a[0] * b[0] * a[1] * b[1] % P
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + product, -1, P)
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - product, -1, P)
    return x % P, y % P


def _times(count: int, point: Point) -> Point:
    total = (0, 1)
    while count:
        if count % 2:
            total = _add(total, point)
        point, count = _add(point, point), count // 2
    return total


def _point(data: bytes) -> Point:
    number = int.from_bytes(data, "little")
    y = number % 2**255
    return _x(y, number >> 255), y


def verifies(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether S * B = R + H(R, A, M) * A."""
    r, s = signature[:32], int.from_bytes(signature[32:], "little")
    digest = hashlib.sha512(r + public + message).digest()
    challenge = int.from_bytes(digest, "little") % ORDER
    base = (_x(BASE_Y, 0), BASE_Y)
    right = _add(_point(r), _times(challenge, _point(public)))
    return s < ORDER and _times(s, base) == right
