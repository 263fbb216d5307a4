"""CT or MR, by the name that a user's dataset.json gives its channel."""

import re
import unicodedata
from typing import Literal

# One word of a kind of CT, what it shows, and its phase or file: NCCT, angioCT, CTA, CTscan. SPECT and "act" are none.
_CT = re.compile(
  r'(?:[34]d|c|cb|ce|dce|nc?|ne|nce|ncce|u?ld|hr|m[dsv]|d[es]|pc|p?v|fd|kv|[qrs]|angio|uro|entero|colo|contrast|abdom\w+'
  r'|portal|venous|arterial|delayed|native|plain|late|early|lowdose|spiral|helical|plan|planning|liver|body|chest)?'
  r'ct(?:[avpuechs]|ac|ap|ha|pa|hu|(?:angio|urogra|colono|enterogra|scan|image|img|vol)\w*)?\d*'
)
_CT_WORD = re.compile(r'cecta|hu|hounsfield|cat|catscan|tc|tac|tdm|кт')
_CT_PHRASE = re.compile(r'comput\w* ?(?:\w+ )?tomogra|tomogra\w+ \w*(?:comput|calcul)|tomodensitom|计算机断层|ct扫描')
_MR = re.compile(
  r'mr|mris?|mrt|mrcp|irm|rmn?|мрт|(?:[23]d)?t[12](?!\d).*|flair|dwi|adc|m?dixon|swi|pdw?|stir|spai?r|mprage|vibe|haste'
  r'|trufi|fiesta|b?ssfp|ssfse|fspgr|inphase|outphase|opphase|oop|hbp|gre|magnetic|gadolinium|gadoxet\w*|gd'
)
_DCE = 'dce'  # dynamic contrast: of MR, but of CT where the name says so
_BOTH = re.compile(r't[12]ct|ct1|ct[12]w|(?:pet|spect)ct')  # CT1 is also T1 with contrast agent
_OTHER = re.compile(r'pet|spect|suv|fdg|us|ultrasound|sonogra\w*')


def modality_of(channel: str) -> Literal['CT', 'MR'] | None:
  """The modality that the name of a channel means.

  Upper and lower case do not matter, nor what divides words. Cone-beam CT counts as CT.

  Args:
    channel: such as 'CT', 'ct_portal', 'CECT', 'computed tomography', 'MRI', 'T2 SPIR'.

  Returns:
    'CT' or 'MR'; None where the name says neither.

  Raises:
    ValueError: the name is of several modalities, such as 'PET/CT' or 'T1 CT'.
  """
  text = unicodedata.normalize('NFKC', channel)
  # Words as they are divided, and also where upper and lower case divide them: CTPortal, portalCT.
  divided = re.sub(r'(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])', ' ', text)
  words = {word for t in (text, divided) for word in re.findall(r'[^\W_]+', t.casefold())}
  found = lambda pattern: any(pattern.fullmatch(word) for word in words)
  sentence = ' '.join(re.findall(r'[^\W_]+', divided.casefold()))
  ct = found(_CT) or found(_CT_WORD) or bool(_CT_PHRASE.search(sentence))
  mr = found(_MR)
  if found(_BOTH) or (ct and (mr or found(_OTHER))):
    raise ValueError(f'{channel!r} names several modalities')
  return 'CT' if ct else 'MR' if mr or _DCE in words else None
