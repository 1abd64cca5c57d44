"""The identity as an authority: ids as names, leaves, anchors, and what each node keeps of them."""

import asyncio
import time
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from shoal.node.certificates import (
    BACKDATED_S,
    LEAF_LIFETIME_S,
    Leaf,
    host_name,
    issue_leaf,
    read_leaf,
    trust_anchor,
)
from shoal.node.channels import Channels
from shoal.node.errors import PeerError
from shoal.node.identity import Identity, id_text, parse_id_text
from shoal.node.trust import Trust
from tests.abuse.forged_leaves import forge
from tests.node.tls import identity_of

ONE, OTHER = identity_of("one"), identity_of("other")


def test_an_id_fits_into_a_label_of_a_name_and_comes_back() -> None:
    text = id_text(ONE.node_id)
    assert len(text) == 52 and text == text.lower()
    assert parse_id_text(text) == ONE.node_id
    # The last character has four bits to spare: another one must not mean the same id.
    spare = text[:-1] + {"q": "r", "a": "b"}.get(text[-1], "a")
    for wrong in ("", text[:-1], text.upper(), text + "a", text[:-1] + "1", spare, f" {text}"):
        with pytest.raises(ValueError, match="base32"):
            parse_id_text(wrong)


def test_a_leaf_lasts_a_day_and_speaks_for_its_identity_only() -> None:
    now = time.time()
    leaf = issue_leaf(ONE, now)
    certificate = x509.load_pem_x509_certificate(leaf.certificate)
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    lasts = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert lasts == timedelta(seconds=LEAF_LIFETIME_S)
    presented = read_leaf(leaf.certificate)
    assert presented.node_id == ONE.node_id
    assert presented.not_before == pytest.approx(now - BACKDATED_S, abs=1.0)
    assert presented.not_after == leaf.not_after
    assert now < leaf.rotate_at < leaf.not_after


def test_an_anchor_follows_from_the_id_and_may_speak_for_one_name() -> None:
    anchor = x509.load_pem_x509_certificate(trust_anchor(ONE.node_id))
    constraints = anchor.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert constraints.value.permitted_subtrees == [x509.DNSName(host_name(ONE.node_id))]
    basic = anchor.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    leaf = x509.load_pem_x509_certificate(issue_leaf(ONE, time.time()).certificate)
    assert leaf.issuer == anchor.subject


@pytest.mark.parametrize(
    ("leaf", "why"),
    [
        (forge(ONE, names=[host_name(OTHER.node_id)]), "another name"),
        (forge(ONE, names=[]), "SubjectAlternativeName"),
        (forge(ONE, names=[host_name(ONE.node_id), "x.mesh"]), "another name"),
        (
            forge(ONE, issuer=OTHER.node_id, names=[host_name(OTHER.node_id)]),
            "the signature of a leaf",
        ),
        (forge(ONE, self_signed=True), "the signature of a leaf"),
    ],
)
def test_a_second_look_finds_what_is_wrong_with_a_leaf(leaf: Leaf, why: str) -> None:
    with pytest.raises(PeerError, match=why) as refusal:
        read_leaf(leaf.certificate)
    assert refusal.value.reason == "bad-certificate"


@pytest.mark.parametrize("pem", [b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_what_is_no_certificate_is_refused(pem: bytes) -> None:
    with pytest.raises(PeerError, match="bad-certificate"):
        read_leaf(pem)


def test_trust_follows_the_list_and_the_leaf_its_age() -> None:
    members = {OTHER.node_id}
    at = [1e9]
    trust = Trust(ONE, lambda: members, clock=lambda: at[0])
    heard: list[frozenset[bytes]] = []
    trust.watchers.append(lambda: heard.append(trust.trusted))
    trust.refresh()
    first = trust.leaf
    assert trust.trusted == {ONE.node_id, OTHER.node_id}
    assert trust.admits(OTHER.node_id) and trust.admits(ONE.node_id)
    members.clear()
    assert not trust.admits(OTHER.node_id), "at once, before the transport hears of it"
    at[0] = first.rotate_at - 1
    trust.refresh()
    assert trust.trusted == {ONE.node_id} and trust.leaf is first
    at[0] = first.rotate_at
    trust.refresh()
    assert trust.leaf is not first and trust.leaf.not_after > first.not_after
    assert len(heard) == 3


def test_a_channel_is_kept_until_what_it_was_made_with_changes() -> None:
    async def story() -> None:
        members, at = {OTHER.node_id}, [time.time()]
        trust = Trust(ONE, lambda: members, clock=lambda: at[0])
        channels = Channels(trust)

        def current() -> object:
            channels.stub(OTHER.node_id, "127.0.0.1:1")
            return channels._open[OTHER.node_id].channel

        trust.refresh()
        first = current()
        assert current() is first
        at[0] = trust.leaf.rotate_at
        trust.refresh()
        second = current()
        assert second is not first
        channels.stub(OTHER.node_id, "127.0.0.1:2")
        assert channels._open[OTHER.node_id].channel is not second
        members.clear()
        trust.refresh()
        assert not channels._open
        await channels.close()

    asyncio.run(story())


def test_a_new_identity_is_another_one() -> None:
    assert Identity.generate().node_id != Identity.generate().node_id
