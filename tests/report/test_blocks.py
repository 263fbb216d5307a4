from afw_jax.report.blocks import Heading, Picture, Table, markdown


def test_every_block_as_markdown():
  table = Table(['a', 'b|c'], [['x', '1'], ['two\nlines', '2']], summaries=1)
  text = markdown([Heading('T', 1), 'Text.', Heading('S'), table, Picture('run [1]/a b.png', 'a b')], 'run [1]/report')
  head, rest = text.split('| a |')
  assert head == '# T\n\nText.\n\n## S\n\n' and rest.endswith('\n')
  assert '| b\\|c |' in text.replace('| a | ', '| ') and '| two lines | 2 |' in text
  assert '![a b](../a%20b.png)' in text
