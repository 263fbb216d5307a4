"""CT or MR by the name of a channel: by any usual name, and refused where it says both."""

import pytest

from afw_jax.data.sets.modality import modality_of

NAMES = {
  'CT': """
    CT|ct| Ct |CT scan|CT-scan|CTscan|CTScan|CT image|CTs|CTA|CT-A|CTV|CTAP|CTPA|CTAC|CECT|cect_portal|NCCT|NECT
    LDCT|HRCT|MDCT|MSCT|DECT|PCCT|CBCT|4DCT|3D CT|sCT|ct_portal|ct_0|CT 1|CT0|ctPortal|CTPortal
    PortalCT|portalct|venousCT|arterialct|lowdoseCT|DCE-CT|CT2|CCTA|CT (HU)|CT/HU|HU
    Hounsfield units|CT abdomen|AbdomenCT-1K
    contrast-enhanced CT|CT contrast|non-contrast CT|low-dose CT|CT angiography
    computed tomography|Computed-Tomography|computerised tomography|Computerized Tomography|Computer Tomography
    Computertomographie|computed axial tomography|X-ray computed tomography|CAT scan|TAC|TDM|tomodensitométrie
    tomografía computarizada|КТ|ＣＴ""",
  'MR': """
    MR|MRI|mri scan|MRT|IRM|T1|T2|T1w|T2w|T1-w|t2_spir|T2SPIR|T1DUAL|t1_in_phase|T1ce|T1Gd|T2-FLAIR|FLAIR|DWI|ADC|DCE
    3DT1|mDixon|T1 contrast|contrast MR|mr_t2|MR-T1|Magnetic resonance|T1_VIBE""",
  None: """
    contrast|portal|image|zscore|noNorm|PET|SPECT|US|act|fact|product|direct|section|ectopic|correct|artifact|abstract|extract|duct|0000|fat|water""",
  'both': 'T1 CT|T1CT|CT1|CT1w|CT and MR|synthetic CT from MRI|PET/CT|PET-CT|PETCT|SPECT/CT|DCE MR-CT',
}


@pytest.mark.parametrize('modality', NAMES)
def test_names(modality):
  names = [name for line in NAMES[modality].strip().splitlines() for name in line.lstrip().split('|')]
  found = {}
  for name in names:
    try:
      found[name] = modality_of(name)
    except ValueError as error:
      found[name] = 'both'
      assert repr(name) in str(error)
  assert found == dict.fromkeys(names, modality)
