"""Which cases a run uses: splits, windows and notes are what they were when a store still held them."""

import pytest
from store_index import CHAOS, index, listing

from afw_jax.data.selection import SelectionOptions, choose, scored_split, select
from afw_jax.errors import InputError, InputErrors

ABDOMEN = [f'Case_{n:05d}' for n in (1, 2, 3, 4, 78, 219, 500, 577, 656)]
SYNAPSE = [f'case{n:04d}' for n in (1, 2, 5, 6, 7, 9)]


def numbers(ids):
  return [int(i[-3:].removeprefix('_')) for i in ids]


@pytest.mark.parametrize(
  'name, ids, options, train, val, test',
  [  # as drawn by the release before stores were shared
    ('chaos_ct', CHAOS, dict(), [1, 2, 6, 8, 16, 18, 19, 21, 22, 23, 25, 26, 28, 29, 30], [5, 10, 14, 24, 27], []),
    (
      'chaos_ct',
      CHAOS,
      dict(seed=1),
      [1, 2, 5, 8, 10, 16, 18, 21, 23, 24, 25, 26, 28, 29, 30],
      [6, 14, 19, 22, 27],
      [],
    ),
    (
      'chaos_ct',
      CHAOS,
      dict(seed=2),
      [1, 2, 5, 6, 14, 16, 19, 21, 22, 24, 25, 26, 28, 29, 30],
      [8, 10, 18, 23, 27],
      [],
    ),
    ('chaos_ct', CHAOS, dict(cases=8), [1, 6, 16, 19, 25, 30], [5, 27], []),
    ('chaos_ct', CHAOS, dict(cases=8, seed=4), [1, 2, 6, 10, 25, 26], [23, 30], []),
    (
      'chaos_ct',
      CHAOS,
      dict(fractions=(6, 1, 3), seed=5),
      [2, 6, 10, 14, 18, 21, 22, 23, 24, 27, 28, 30],
      [8, 19],
      [1, 5, 16, 25, 26, 29],
    ),
    ('abdomenct1k', ABDOMEN, dict(), [1, 2, 4], [500], [3]),
    ('abdomenct1k', ABDOMEN, dict(keep_defective=True), [1, 2, 4, 78, 656], [577], [3, 219, 500]),
    ('abdomenct1k', ABDOMEN, dict(keep_defective=True, cases=3, seed=1), [656], [1], [500]),
    ('synapse', SYNAPSE, dict(), [5, 6, 7, 9], [], [1, 2]),
    ('synapse', SYNAPSE, dict(fractions=(3, 1, 0), seed=1), [5, 6, 7], [9], [1, 2]),
  ],
)
def test_splits_are_those_of_earlier_releases(name, ids, options, train, val, test):
  chosen = choose(listing(name, ids), SelectionOptions(**options))
  assert {part: numbers(ids) for part, ids in chosen.splits.items()} == {'train': train, 'val': val, 'test': test}
  assert chosen.ids == sorted(i for part in chosen.splits.values() for i in part)


def test_the_draw_is_the_same_wherever_the_listing_comes_from():
  small, whole = SelectionOptions(cases=8), listing('chaos_ct', CHAOS)
  kept = choose(whole, small).ids
  assert choose(listing('chaos_ct', CHAOS[::-1]), small) == choose(whole, small)
  assert choose(whole, SelectionOptions(cases=kept)).splits == choose(whole, small).splits


def test_notes_and_excluded_cases():
  notes = lambda *args, **options: choose(listing(*args), SelectionOptions(**options)).notes
  assert notes('synapse', SYNAPSE) == [
    '24 of the 30 published cases are missing',
    'no val part: the last checkpoint is used, since none can be chosen as the best',
  ]
  assert not any('published' in note for note in notes('synapse', SYNAPSE, cases=3))
  excluded = choose(listing('abdomenct1k', ABDOMEN), SelectionOptions()).excluded
  assert list(excluded) == ['Case_00078', 'Case_00219', 'Case_00577', 'Case_00656']
  assert excluded['Case_00219'] == 'known defect: it has no spleen'
  assert notes('abdomenct1k', ABDOMEN, keep_defective=True)[1] == 'Case_00219 is used although it has no spleen'
  unlabelled = listing('chaos_ct', CHAOS, num_training=30)
  unlabelled['scans']['case_05']['labelled'] = False
  assert choose(unlabelled, SelectionOptions()).notes == [
    '1 scan without labels is not used; to predict: --mode=predict',
    'dataset.json declares numTraining 30, but there are 19 labelled cases',
    'no test part: scores can only be computed on the validation cases',
  ]


@pytest.mark.parametrize(
  'options, said',
  [
    (dict(cases=99), 'only 20 usable cases'),
    (dict(cases=['case_01', 'case_99']), 'cases case_99: are not usable cases of the data set. Usable are case_01'),
    (dict(window='papper'), "Did you mean 'paper'"),
    (dict(fractions=(0, 1, 0)), 'fractions of'),
  ],
)
def test_options_that_cannot_be_met(options, said):
  with pytest.raises(InputError, match=said):
    choose(listing('chaos_ct', CHAOS), SelectionOptions(**options))
  with pytest.raises(InputError, match='is not a number of cases'):
    SelectionOptions(cases=0)


def test_windows_of_the_selected_cases():
  chosen = select(index(), SelectionOptions(cases=8))
  assert chosen.window == (50, 350) and set(chosen.windows) == set(chosen.ids)
  assert set(chosen.windows.values()) == {(50.0, 350.0)}
  assert select(index(), SelectionOptions(window=(-10, 90.5))).windows['case_06'] == (-10, 90.5)
  percentile = select(index(), SelectionOptions(window='percentile'))
  assert percentile.window == 'percentile' and percentile.windows['case_06'] == (6, 106.5)
  assert percentile.splits == select(index(), SelectionOptions()).splits


def test_cases_are_asked_for_in_any_unicode_form():
  data = listing('chaos_ct', ['M\u00fcller', 'b', 'c'])
  assert choose(data, SelectionOptions(cases=['Mu\u0308ller', 'b'])).ids == ['M\u00fcller', 'b']
  assert choose(data, SelectionOptions(cases=['Mu\u0308ller', 'M\u00fcller'])).ids == ['M\u00fcller']


def test_remarks_about_the_description_are_notes():
  assert choose(listing('chaos_ct', CHAOS, notes=('a remark',)), SelectionOptions()).notes[0] == 'a remark'


def test_cases_that_are_not_prepared_are_named():
  with pytest.raises(
    InputError, match=r'1 of the 20 cases of this run are not prepared \(case_30\). Run --mode=prepare'
  ):
    select(index(prepared=CHAOS[:-1]), SelectionOptions())
  assert select(index(prepared=CHAOS[:-1]), SelectionOptions(cases=CHAOS[:5])).ids == CHAOS[:5]


def test_remarks_about_prepared_cases():
  odd = index(case_01=dict(notes=['odd']), case_02=dict(working_voxels={'liver': 0}), case_05=dict(voxels={'liver': 0}))
  notes = select(odd, SelectionOptions()).notes
  assert notes[1:] == ['case_01: odd', 'case_02: no voxel of liver is left on the working grid']
  without = index(**{i: dict(voxels={'liver': 0}) for i in CHAOS})
  assert select(without, SelectionOptions()).notes[-1] == 'liver is in no training case'


def test_the_same_scan_twice_in_a_selection():
  twice = index(case_02=dict(voxels_sha256='1'), case_06=dict(voxels_sha256='1'))
  with pytest.raises(InputErrors) as e:
    select(twice, SelectionOptions())
  assert 'scan2.nii: is the same scan as scan1.nii (cases case_01 in train, case_02 in train)' in str(e.value)
  with pytest.raises(InputError, match='scan6.nii: is the same scan as scan1.nii'):
    select(twice, SelectionOptions(cases=['case_01', 'case_05', 'case_06']))
  assert select(twice, SelectionOptions(cases=['case_01', 'case_05'])).ids == ['case_01', 'case_05']


@pytest.mark.parametrize(
  'full, wanted, scored',
  [
    (('train', 'val', 'test'), 'test', 'test'),
    (('train', 'val'), 'test', 'val'),
    (('train',), 'test', None),
    (('train', 'test'), 'val', None),
    (('train', 'test'), 'test', 'test'),
    (('train',), 'train', 'train'),
  ],
)
def test_the_split_that_is_scored(full, wanted, scored):
  assert scored_split({part: ['a'] if part in full else [] for part in ('train', 'val', 'test')}, wanted) == scored


def test_a_fold_divides_all_but_the_test_cases():
  of_fold = lambda name, ids, fold, **options: choose(listing(name, ids), SelectionOptions(fold=fold, **options))
  folds = [of_fold('chaos_ct', CHAOS, f'{k}/3') for k in (1, 2, 3)]
  assert sorted(sum((choice.splits['val'] for choice in folds), [])) == CHAOS
  assert [choice.fold for choice in folds] == ['1/3', '2/3', '3/3']
  assert all(choice.ids == CHAOS and not choice.splits['test'] for choice in folds)
  assert 'fold 2 of 3: 7 of 20 cases are held out (val)' in folds[1].notes

  published = of_fold('synapse', SYNAPSE, '1/2')
  assert numbers(published.splits['test']) == [1, 2] and len(published.splits['val']) == 2
  assert published.splits['test'] == choose(listing('synapse', SYNAPSE), SelectionOptions()).splits['test']
  drawn = of_fold('abdomenct1k', ABDOMEN, '1/2')  # whose own fractions have a test share
  assert drawn.splits['test'] == choose(listing('abdomenct1k', ABDOMEN), SelectionOptions()).splits['test'] != []
  assert set(drawn.excluded) == {'Case_00078', 'Case_00219', 'Case_00577', 'Case_00656'}
  fewer = of_fold('chaos_ct', CHAOS, '1/2', cases=5)
  assert fewer.ids == choose(listing('chaos_ct', CHAOS), SelectionOptions(cases=5)).ids


def test_folds_that_cannot_be():
  with pytest.raises(InputError, match=r'20 subject.* cannot be dealt into 21 folds.*Ask for fewer folds'):
    choose(listing('chaos_ct', CHAOS), SelectionOptions(fold='1/21'))
  with pytest.raises(InputError, match="'5/4' is not a fold"):
    SelectionOptions(fold='5/4')
  assert select(index(), SelectionOptions(fold='3/4')).fold == '3/4'
