"""Collectives in the text of compiled programs: kinds, sizes, and how often a run executes them."""

import numpy as np

from afw_jax.planning import collectives

HLO = """
  %gathered.1 = f32[2,64,8]{2,1,0} all-gather(%p), channel_id=1, dimensions={1}
  %sum = (f32[9]{0}, bf16[4,4]{1,0}) all-reduce(%a, %b), channel_id=2
  ROOT %border = s32[1,1,16]{2,1,0:T(8,128)} collective-permute(%x), source_target_pairs={{0,1}}
  %go = (f32[2,8]{1,0}, f32[2,64]{1,0}) all-gather-start(%q), dimensions={1}
  %arrived = f32[2,64]{1,0} all-gather-done(%go)
  %both = ((f32[8]{0}, f32[8]{0}), (f32[32]{0}, f32[64]{0})) all-gather-start(%s, %t), dimensions={0}
  %arrived.2 = (f32[32]{0}, f32[64]{0}) all-gather-done(%both)
  %total = f32[] all-reduce-start(%c)
  %summed = f32[] all-reduce-done(%total)
  %fused = f32[100] fusion(%sum), metadata={op_name="all-gather(x)"}
"""


def test_collectives_are_read_from_the_compiled_text():
  assert collectives.collectives(HLO) == [
    ('all-gather', 4096),
    ('all-reduce', 36 + 32),
    ('collective-permute', 64),
    ('all-gather', 512),
    ('all-gather', 128 + 256),
    ('all-reduce', 4),
  ]
  assert np.sum([size for _, size in collectives.collectives('%y = f32[3] add(%a, %b)')]) == 0


def test_traffic_of_loops_within_loops_and_of_programs_of_accelerators():
  hlo = '\n'.join(
    [
      'HloModule jit_f, is_scheduled=true',
      '',
      '%add (a: f32[], b: f32[]) -> f32[] {',
      '  ROOT %s = f32[] add(f32[] %a, f32[] %b)',
      '}',
      '',
      '%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {',
      '  %r = f32[8]{0:T(128)S(1)} all-reduce(f32[8]{0} %g), replica_groups={{0,1}}, to_apply=%add',
      '}',
      '',
      '%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {',
      '  %w = (s32[], f32[8]{0}) while((s32[], f32[8]{0}) %t), condition=%c, body=%inner, '
      'backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}',
      '}',
      '',
      '%never (p: f32[8]) -> f32[8] {',
      '  %r9 = f32[8]{0} all-reduce(f32[8]{0} %p), to_apply=%add',
      '}',
      '',
      'ENTRY %main.1_spmd (x: f32[4,8]) -> f32[8] {',
      '  %w2 = (s32[], f32[8]{0}) while((s32[], f32[8]{0}) %t), condition=%c, body=%outer, '
      'backend_config={"known_trip_count":{"n":"2"}}',
      '  %ag = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(bf16[4,8]{1,0} %x), dimensions={0}',
      '  %agd = bf16[16,8]{1,0} all-gather-done((bf16[4,8]{1,0}, bf16[16,8]{1,0}) %ag)',
      '  %cp = (f32[1,8]{1,0}, f32[1,8]{1,0}, u32[], u32[]) collective-permute-start(f32[1,8]{1,0} %y), '
      'source_target_pairs={{0,1}}',
      '  %cpd = f32[1,8]{1,0} collective-permute-done((f32[1,8]{1,0}, f32[1,8]{1,0}, u32[], u32[]) %cp)',
      '  %rs = ((f32[8]{0}, f32[4]{0}), (f32[2]{0}, f32[1]{0})) reduce-scatter-start(f32[8]{0} %u, f32[4]{0} %v), '
      'to_apply=%add',
      '  %rsd = (f32[2]{0}, f32[1]{0}) reduce-scatter-done(((f32[8]{0}, f32[4]{0}), (f32[2]{0}, f32[1]{0})) %rs)',
      '  ROOT %ar = (f32[8]{0}, /*index=1*/f32[2]{0}) all-reduce(f32[8]{0} %a, f32[2]{0} %b), to_apply=%add',
      '}',
    ]
  )
  assert sorted(collectives.traffic(hlo)) == [
    ('all-gather', 256, 1),
    ('all-reduce', 32, 6),
    ('all-reduce', 40, 1),
    ('collective-permute', 32, 1),
    ('reduce-scatter', 12, 1),
  ]
