"""XMP sidecars: the rating, and not a byte more."""

import xml.etree.ElementTree as ET

import pytest

from qualiclip_jax.errors import UserError
from qualiclip_jax.inference import xmp

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XAP = "http://ns.adobe.com/xap/1.0/"
SIDECAR = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<!-- mine --><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{rdf}">
<rdf:Description rdf:about='' xmlns:dc="http://purl.org/dc/elements/1.1/" dc:title="a 'b' > c"{declared}{attribute}>
  <dc:subject><rdf:Bag><rdf:li>caf\u00e9 &amp; dog</rdf:li></rdf:Bag></dc:subject>{element}
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""


def sidecar(declared="", attribute="", element=""):
    return SIDECAR.format(rdf=RDF, declared=declared, attribute=attribute, element=element).encode()


def rating_of(data):
    """By another parser."""
    tree = ET.fromstring(data)
    found = [node.attrib[f"{{{XAP}}}Rating"] for node in tree.iter() if f"{{{XAP}}}Rating" in node.attrib]
    return found + [node.text for node in tree.iter(f"{{{XAP}}}Rating")]


DECLARED = f' xmlns:xmp="{XAP}"'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"declared": None}),
        ({"declared": DECLARED}, None),
        ({"declared": DECLARED, "attribute": ' xmp:Rating="2"'}, {"attribute": ' xmp:Rating="4"'}),
        ({"declared": DECLARED, "attribute": " xmp:Rating = '-1'"}, {"attribute": ' xmp:Rating = "4"'}),
        ({"declared": f' xmlns:q="{XAP}"', "attribute": ' q:Rating="2"'}, {"attribute": ' q:Rating="4"'}),
        ({"declared": DECLARED, "element": "<xmp:Rating>2</xmp:Rating>"}, {"element": "<xmp:Rating>4</xmp:Rating>"}),
        ({"declared": DECLARED, "element": "<xmp:Rating/>"}, {"element": "<xmp:Rating>4</xmp:Rating>"}),
    ],
)
def test_only_the_rating_changes(before, after):
    data = sidecar(**before)
    changed = xmp.rated(data, 4)
    assert rating_of(changed) == ["4"]
    if before.get("attribute") or before.get("element"):
        assert changed == sidecar(**(before | after))
    else:  # the rating is new: without it, the bytes are those that were there
        added = f'{"" if before else DECLARED} xmp:Rating="4"'.encode()
        assert changed.replace(added, b"", 1) == data


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"<a/>", sidecar()[:200], b'<!DOCTYPE a [<!ENTITY b "c">]><a/>', "<a/>".encode("utf-16")]
)
def test_what_is_no_sidecar_is_left_as_it_is(data, tmp_path):
    path = tmp_path / "a.jpg.xmp"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.jpg\.xmp: .*it was left as it is"):
        xmp.rate(path, 3)
    assert path.read_bytes() == data


def test_new_sidecars_and_kept_ratings(tmp_path):
    photo = str(tmp_path / "a.jpg")
    assert xmp.sidecar(photo).name == "a.jpg.xmp"
    assert xmp.rate(xmp.sidecar(photo), 5)
    assert rating_of(xmp.sidecar(photo).read_bytes()) == ["5"]
    assert not xmp.rate(xmp.sidecar(photo), 1, keep=True)
    assert xmp.rate(xmp.sidecar(photo), 1)
    assert rating_of(xmp.sidecar(photo).read_bytes()) == ["1"]
    (tmp_path / "b.xmp").write_bytes(sidecar())
    assert xmp.sidecar(str(tmp_path / "b.jpg")).name == "b.xmp"
    assert xmp.rate(tmp_path / "b.xmp", 2, keep=True)  # it has none


def test_stars_by_percentile():
    assert xmp.stars([k / 10 for k in range(10)]) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert xmp.stars([0.3]) == xmp.stars([0.3] * 4)[:1] == [3]
