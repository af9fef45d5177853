"""--hf-overrides reach the encoders that transformers makes."""

from plugserve.backends.torch.encoders.encoder_model import encoder_class, encoder_shapes
from tests.backends.torch.encoders.encoder_samples import build, save


def test_an_encoders_config_is_overridden(tmp_path):
    folder = save(tmp_path / "model", build())
    assert encoder_class(folder, "embed", {"hidden_act": "relu"})[1].hidden_act == "relu"
    shapes = encoder_shapes(folder, "embed", {"num_hidden_layers": 1})
    assert not any(".layer.1." in name for name in shapes)
    assert any(".layer.1." in name for name in encoder_shapes(folder, "embed", {}))
