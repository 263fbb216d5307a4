"""Codes of organs in SNOMED CT, as the DICOM standard uses them for segments.

Values and meanings are those of the context groups of DICOM PS3.16 (2023 and later): CID 7150 the categories, CID 7151
(with 7154 abdomen, 7155 thorax, 7160 pelvis) and CID 4031 the organs, CID 244 the sides. An organ that has no code of
its own there, such as two organs with one label, gets one of the private scheme 99AFWJAX.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

SNOMED, PRIVATE = 'SCT', '99AFWJAX'


class Code(NamedTuple):
  """A coded concept: value, meaning, and designator of the scheme that it is from."""

  value: str
  meaning: str
  scheme: str = SNOMED


class OrganCode(NamedTuple):
  """How an organ is coded: its category, its type, and its side where it is one of a pair."""

  category: Code
  kind: Code
  side: Code | None = None


ANATOMICAL = Code('91723000', 'Anatomical Structure')
ABNORMAL = Code('49755003', 'Morphologically Abnormal Structure')
LEFT, RIGHT = Code('7771000', 'Left'), Code('24028007', 'Right')
_SIDES = {'left': LEFT, 'l': LEFT, 'lt': LEFT, 'right': RIGHT, 'r': RIGHT, 'rt': RIGHT}
_LESIONS = re.compile('tumou?rs?|lesions?|cysts?|metastas[ie]s|cancer|carcinoma|nodules?|mass')

# (value, meaning, whether there is a left and a right one, names besides the meaning), names in lower case.
_ORGANS = (
  ('10200004', 'Liver', False, ('hepatic parenchyma',)),
  ('78961009', 'Spleen', False, ()),
  ('64033007', 'Kidney', True, ('kidneys',)),
  ('15776009', 'Pancreas', False, ()),
  ('28231008', 'Gallbladder', False, ('gall bladder',)),
  ('69695003', 'Stomach', False, ()),
  ('15825003', 'Aorta', False, ()),
  ('7832008', 'Abdominal aorta', False, ()),
  ('32849002', 'Esophagus', False, ('oesophagus',)),
  ('64131007', 'Inferior vena cava', False, ('ivc', 'postcava', 'vena cava inferior')),
  ('32764006', 'Portal vein', False, ('hepatic portal vein',)),
  ('35819009', 'Splenic vein', False, ()),
  ('8993003', 'Hepatic vein', False, ('hepatic veins',)),
  ('90771006', 'Superior Mesenteric Vein', False, ('smv',)),
  ('42258001', 'Superior mesenteric artery', False, ('sma',)),
  ('22083002', 'Splenic artery', False, ()),
  ('76015000', 'Hepatic artery', False, ()),
  ('2841007', 'Renal artery', True, ('renal arteries',)),
  ('56400007', 'Renal vein', True, ('renal veins',)),
  ('73634005', 'Common iliac artery', True, ()),
  ('46027005', 'Common iliac vein', True, ()),
  ('10293006', 'Iliac artery', True, ()),
  ('23451007', 'Adrenal gland', True, ('adrenal', 'adrenals', 'adrenal glands', 'suprarenal gland')),
  ('38848004', 'Duodenum', False, ()),
  ('30315005', 'Small intestine', False, ('small bowel',)),
  ('21306003', 'Jejunum', False, ()),
  ('34516001', 'Ileum', False, ()),
  ('14742008', 'Large intestine', False, ('large bowel',)),
  ('71854001', 'Colon', False, ()),
  ('60184004', 'Sigmoid colon', False, ()),
  ('34402009', 'Rectum', False, ()),
  ('89837001', 'Bladder', False, ('urinary bladder',)),
  ('41216001', 'Prostate', False, ('prostate gland',)),
  ('64739004', 'Seminal Vesicle', True, ('seminal vesicles',)),
  ('35039007', 'Uterus', False, ()),
  ('15497006', 'Ovary', True, ('ovaries',)),
  ('28273000', 'Bile duct', False, ()),
  ('79741001', 'Common bile duct', False, ()),
  ('69930009', 'Pancreatic duct', False, ()),
  ('87953007', 'Ureter', True, ('ureters',)),
  ('39607008', 'Lung', True, ('lungs',)),
  ('80891009', 'Heart', False, ()),
  ('44567001', 'Trachea', False, ()),
  ('69748006', 'Thyroid', False, ('thyroid gland',)),
  ('12738006', 'Brain', False, ()),
  ('2748008', 'Spinal cord', False, ()),
  ('71341001', 'Femur', True, ('femurs',)),
  ('2812003', 'Femoral head', True, ('head of femur', 'femur head')),
  ('54735007', 'Sacrum', False, ()),
  ('29836001', 'Hip', True, ()),
)
_BY_NAME = {
  name: (Code(value, meaning), paired)
  for value, meaning, paired, others in _ORGANS
  for name in (meaning.lower(), *others)
}


def find(organ: str) -> OrganCode:
  """The code of an organ.

  Args:
    organ: its name in a data set, such as 'left_kidney', 'Kidney (L)', 'IVC'; case, order and punctuation do not count.

  Returns:
    A code of SNOMED CT where the name is one of the table, else one of the private scheme, whose meaning is the name.
    One that names a side of an organ that is not one of a pair ('left liver') is not of the table.
  """
  rest, sides = _without_side(organ)
  known = _BY_NAME.get(' '.join(rest))
  if known and len(sides) <= known[1]:
    return OrganCode(ANATOMICAL, known[0], *sides)
  lesion = any(_LESIONS.fullmatch(word) for word in rest)
  return OrganCode(ABNORMAL if lesion else ANATOMICAL, Code(_private_value(organ), text(organ), PRIVATE))


def pairs(organs: Iterable[str]) -> list[tuple[str, str]]:
  """The (left, right) organs of one kind, by their names: left_kidney and right_kidney, 'Lung L' and 'Lung R'."""
  found: dict[tuple[str, ...], dict[Code, list[str]]] = {}
  for organ in organs:
    rest, sides = _without_side(organ)
    if rest and len(sides) == 1:
      found.setdefault(rest, {}).setdefault(next(iter(sides)), []).append(organ)
  both = [(sides.get(LEFT, []), sides.get(RIGHT, [])) for sides in found.values()]
  return [(left[0], right[0]) for left, right in both if len(left) == len(right) == 1]


def _without_side(organ: str) -> tuple[tuple[str, ...], set[Code]]:
  """The words of a name in lower case that name no side, and the sides that the others name."""
  words = re.findall(r'[^\W_]+', re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', organ).casefold())
  return tuple(word for word in words if word not in _SIDES), {_SIDES[word] for word in words if word in _SIDES}


def text(name: str) -> str:
  """A name as DICOM takes it for a label or a meaning: at most 64 characters, without backslashes and control codes."""
  clean = ''.join(' ' if unicodedata.category(c).startswith('C') else '/' if c == '\\' else c for c in name).strip()
  if len(clean) <= 64 and clean:
    return clean
  return f'{clean[:55]}~{_digest(name)[:8]}'


def _private_value(name: str) -> str:
  """The name itself where a code value can hold it (16 ASCII characters), else a digest of it."""
  short = re.fullmatch(r'[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?', name)
  return name if short else f'name-{_digest(name)[:11]}'


def _digest(name: str) -> str:
  return hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()
