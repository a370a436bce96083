"""sources/tls_libraries.py: on the libraries of this machine, and on C snippets that gcc compiles in the test."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from netprofiler.sources.elf import Image
from netprofiler.sources.instructions import decode
from netprofiler.sources.probes import ABSENT, Call, Finding, Library, Probe, Purpose, Result
from netprofiler.sources.tls_libraries import find_libraries

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")


def find(path: Path, crypto: Path | None = None) -> tuple[Image, Finding]:
    image = Image(path.read_bytes())
    (finding,) = find_libraries(image, None if crypto is None else Image(crypto.read_bytes()))
    return image, finding


def probes(finding: Finding, function: str, purpose: Purpose) -> list[Probe]:
    return [probe for probe in finding.probes if (probe.function, probe.purpose) == (function, purpose)]


def mnemonic(image: Image, offset: int) -> tuple[bool, bool]:
    """Of the instruction at a file offset: whether it is emulated, whether it returns."""
    instruction = next(decode(image.data[offset : offset + 15], 0))
    return instruction.emulated, instruction.is_return


def check_sites(image: Image, finding: Finding) -> None:
    """What every finding owes: instructions are what the probes say."""
    assert finding.probes
    for probe in finding.probes:
        emulated, returns = mnemonic(image, probe.offset)
        assert probe.on_return or emulated == probe.emulated
        if probe.purpose is Purpose.LEAVE and not probe.emulated and not probe.on_return:
            assert returns
    keys = [(probe.offset, probe.purpose, probe.on_return) for probe in finding.probes]
    assert len(set(keys)) == len(keys)


def test_libssl_of_this_machine() -> None:
    image, finding = find(LIBRARIES / "libssl.so.3", LIBRARIES / "libcrypto.so.3")
    check_sites(image, finding)
    assert (finding.library, finding.problem) == (Library.OPENSSL, "")
    assert finding.version.startswith("3.")
    for function, call in (("SSL_read", Call.READ), ("SSL_write", Call.WRITE)):
        (enter,) = probes(finding, function, Purpose.ENTER)
        (leave,) = probes(finding, function, Purpose.LEAVE)
        assert enter.call is leave.call is call
        assert enter.emulated and leave.emulated
        assert leave.result is Result.AX
        (counted,) = probes(finding, f"{function}_ex", Purpose.LEAVE)
        assert counted.call is call
        assert counted.result is Result.POINTER
    assert {probe.function for probe in finding.probes if probe.purpose is Purpose.FREE} == {"SSL_free", "SSL_clear"}
    assert {probe.function for probe in finding.probes if probe.call is Call.OTHER} >= {
        "SSL_connect",
        "SSL_accept",
        "SSL_shutdown",
    }
    assert not any(probe.on_return for probe in finding.probes)


def test_layout_of_libssl_is_that_of_a_program_that_uses_it(tmp_path: Path) -> None:
    """The accessors are asked, and the members looked at, in a process."""
    layout = find(LIBRARIES / "libssl.so.3", LIBRARIES / "libcrypto.so.3")[1].layout
    assert layout is not None
    assert layout.random_pointer == ABSENT
    source = f"""
        #include <openssl/ssl.h>
        #include <string.h>
        int main(void) {{
            SSL_CTX *context = SSL_CTX_new(TLS_method());
            SSL *ssl = SSL_new(context);
            BIO *bio = BIO_new_socket(1234, 0), *other = BIO_new(BIO_s_mem());
            char *s = (char *)ssl, *b = (char *)bio;
            unsigned char random[32];
            if (!ssl || !bio) return 1;
            SSL_set_bio(ssl, bio, other);
            SSL_set_accept_state(ssl);
            if (*(BIO **)(s + {layout.read_bio}) != bio) return 2;
            if (*(int *)(b + {layout.bio_number}) != 1234) return 3;
            if (**(int **)(b + {layout.bio_method}) != BIO_method_type(bio)) return 4;
            if (*(int *)(s + {layout.server}) != 1) return 5;
            SSL_set_connect_state(ssl);
            if (*(int *)(s + {layout.server}) != 0) return 6;
            memset(s + {layout.random}, 0x5a, 32);
            if (SSL_get_client_random(ssl, random, 32) != 32) return 7;
            for (int i = 0; i < 32; i++) if (random[i] != 0x5a) return 8;
            return 42;
        }}
    """
    program = tmp_path / "layout"
    subprocess.run(["gcc", "-x", "c", "-", "-o", program, "-lssl", "-lcrypto"], input=source.encode(), check=True)
    assert subprocess.run([program], check=False).returncode == 42


def test_libcrypto_by_its_name_where_it_is_not_at_hand() -> None:
    with_it = find(LIBRARIES / "libssl.so.3", LIBRARIES / "libcrypto.so.3")[1].layout
    without = find(LIBRARIES / "libssl.so.3")[1].layout
    assert with_it == without


def test_libgnutls_of_this_machine() -> None:
    image, finding = find(LIBRARIES / "libgnutls.so.30")
    check_sites(image, finding)
    assert (finding.library, finding.problem) == (Library.GNUTLS, "")
    assert finding.version.startswith("3.")
    assert probes(finding, "gnutls_record_send2", Purpose.ENTER)
    assert not probes(finding, "gnutls_record_send", Purpose.ENTER)  # it ends in send2: a call counts once
    (enter,) = probes(finding, "gnutls_record_recv", Purpose.ENTER)
    assert enter.emulated
    assert {probe.result for probe in finding.probes if probe.call is Call.READ and probe.purpose is Purpose.LEAVE} == {
        Result.AX_LONG
    }
    assert [probe.function for probe in finding.probes if probe.purpose is Purpose.FREE] == ["gnutls_deinit"]


def test_libnspr4_of_this_machine() -> None:
    image, finding = find(LIBRARIES / "libnspr4.so")
    check_sites(image, finding)
    assert (finding.library, finding.problem) == (Library.NSS, "")
    assert finding.version.startswith("4.")
    writes = {probe.function for probe in finding.probes if probe.call is Call.WRITE}
    assert writes == {"PR_Write", "PR_Send"}
    assert {p.function for p in finding.probes if p.call is Call.WRITE_VECTOR} == {"PR_Writev"}
    assert any("return probe" in note for note in finding.notes)


def test_node_of_this_machine() -> None:
    node = shutil.which("node")
    assert node is not None
    image, finding = find(Path(node).resolve())
    check_sites(image, finding)
    assert (finding.library, finding.problem) == (Library.OPENSSL, "")
    assert all(probe.emulated for probe in finding.probes if probe.call is Call.READ)
    assert finding.layout is not None
    assert ABSENT not in (finding.layout.read_bio, finding.layout.random, finding.layout.bio_number)


# Snippets

SHARED = """
    struct ssl { void *a, *rbio; };
    __attribute__((noipa, visibility("hidden"))) int inner(struct ssl *s, void *b, unsigned long n, unsigned long *c) {
        if (c) *c = n;
        return s->a != b;
    }
    void SSL_CTX_new(void) {} void OPENSSL_init_ssl(void) {} void check(int);
    void *SSL_get_rbio(struct ssl *s) { return s->rbio; }
    void SSL_free(struct ssl *s) { check(1); s->a = 0; }
"""
STEP = "int SSL_write(struct ssl *s, void *b, int n) { return n < 0 ? -1 : inner(s, b, n, 0) + 1; }"


def compile_library(tmp_path: Path, source: str, *options: str) -> Path:
    path = tmp_path / "library.so"
    flags = ["-shared", "-fPIC", "-O2", "-fcf-protection=none", "-fno-stack-protector", *options]
    subprocess.run(["gcc", *flags, "-x", "c", "-", "-o", path], input=source.encode(), check=True)
    return path


def test_count_on_the_stack(tmp_path: Path) -> None:
    """As Debian's SSL_read without its stack protector: a jump tells of success, the count is loaded behind it."""
    source = (
        SHARED
        + STEP
        + """
        int SSL_read(struct ssl *s, void *b, int n) {
            unsigned long count;
            if (n < 0) return -1;
            if (inner(s, b, n, &count) <= 0) return -1;
            check(2);
            return (int)count;
        }
    """
    )
    image, finding = find(compile_library(tmp_path, source))
    check_sites(image, finding)
    (leave,) = probes(finding, "SSL_read", Purpose.LEAVE)
    assert leave.emulated
    assert leave.result is Result.STACK
    assert 0 <= leave.displacement < 64
    assert finding.layout is not None
    assert finding.layout.read_bio == 8


def test_another_call_with_the_arguments_still_in_their_registers(tmp_path: Path) -> None:
    """As ssl3_read, which asks for the address of errno first: what that returned is not the count."""
    source = (
        SHARED
        + STEP
        + """
        __attribute__((noinline, noipa)) int *where(void) { static int number; return &number; }
        int SSL_read(struct ssl *s, void *b, int n) { check(1); return inner(s, b, n, 0); }
        int SSL_read_ex(struct ssl *s, void *b, unsigned long n, unsigned long *count) {
            int r;
            if (where()) check(4);
            r = inner(s, b, n, count);
            if (r == -1) check(3);
            return r;
        }
    """
    )
    image, finding = find(compile_library(tmp_path, source, "-Wl,-Bsymbolic"))
    check_sites(image, finding)
    (enter,) = probes(finding, "SSL_read_ex", Purpose.ENTER)
    leaves = probes(finding, "SSL_read_ex", Purpose.LEAVE)
    assert leaves
    code = list(decode(image.data[enter.offset : leaves[0].offset], enter.offset))
    assert sum(instruction.is_call for instruction in code) >= 2  # where() and inner() lie before


def test_a_loop_is_not_left_in_its_middle(tmp_path: Path) -> None:
    """A site behind the call would be passed by each attempt: the returns are taken."""
    source = (
        SHARED
        + STEP
        + """
        int SSL_read(struct ssl *s, void *b, int n) {
            int r;
            do { r = inner(s, b, n, 0); check(r); } while (r == -2);
            return r;
        }
    """
    )
    image, finding = find(compile_library(tmp_path, source))
    check_sites(image, finding)
    leaves = probes(finding, "SSL_read", Purpose.LEAVE)
    assert leaves
    assert not any(probe.emulated for probe in leaves)
    assert any(note.startswith("SSL_read is left single-stepped") for note in finding.notes)


def test_a_tail_call_that_cannot_be_followed(tmp_path: Path) -> None:
    source = (
        SHARED
        + STEP
        + """
        int SSL_read(struct ssl *s, void *b, int n) { return ((int (**)(void *, void *, int))s->a)[3](s, b, n); }
        int SSL_do_handshake(struct ssl *s) { return ((int (**)(void *))s->a)[4](s); }
    """
    )
    image, finding = find(compile_library(tmp_path, source))
    check_sites(image, finding)
    (leave,) = probes(finding, "SSL_read", Purpose.LEAVE)
    assert leave.on_return
    assert not probes(finding, "SSL_do_handshake", Purpose.ENTER)  # no return probe for the sake of a socket
    assert any(note.startswith("SSL_do_handshake is not probed") for note in finding.notes)


def test_functions_that_share_their_return_and_tell_otherwise(tmp_path: Path) -> None:
    """One counts in EAX, the other by a pointer, and both end in the same code: only one can be read."""
    source = (
        SHARED
        + STEP
        + """
        __attribute__((noinline)) int shared(struct ssl *s, void *b, long n) { check(3); return inner(s, b, n, 0) + 7; }
        int SSL_read(struct ssl *s, void *b, int n) { return shared(s, b, n); }
        int SSL_read_ex(struct ssl *s, void *b, unsigned long n, unsigned long *c) { *c = 1; return shared(s, b, n); }
    """
    )
    _, finding = find(compile_library(tmp_path, source, "-Wl,-Bsymbolic"))
    assert "SSL_read_ex is not probed: it shares code with SSL_read." in (*finding.notes, finding.problem)
    assert finding.problem or not probes(finding, "SSL_read_ex", Purpose.ENTER)


def test_stripped_library_is_recognised(tmp_path: Path) -> None:
    path = compile_library(tmp_path, 'const char *where(void) { return "third_party/boringssl/src/ssl/ssl_lib.cc"; }')
    _, finding = find(path)
    assert finding.library is Library.BORINGSSL
    assert finding.probes == ()
    assert finding.problem.startswith("BoringSSL is linked into it")


def test_a_library_that_only_imports_has_none(tmp_path: Path) -> None:
    path = compile_library(tmp_path, "int SSL_read(void *, void *, int); int f(void) { return SSL_read(0, 0, 0) + 1; }")
    assert find_libraries(Image(path.read_bytes())) == ()


@pytest.mark.parametrize("name", ["libc.so.6", "libcrypto.so.3"])
def test_other_libraries_have_none(name: str) -> None:
    assert find_libraries(Image((LIBRARIES / name).read_bytes())) == ()
