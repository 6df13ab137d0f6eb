import pytest
import timm
import torch
from torch import nn

from catalign.encoders.convolution import MatmulConv2d, speed_up_small_maps


@pytest.mark.parametrize("size", [(3, 2), (4, 4), (1, 1), (9, 7)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": (1, 3), "padding": (0, 1), "stride": (1, 2)},
    ],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_the_plain_layer(options, size):
    torch.manual_seed(0)
    plain = nn.Conv2d(5, 7, **options).double()
    ours = nn.Sequential(nn.Conv2d(5, 7, **options).double())
    ours[0].load_state_dict(plain.state_dict())
    speed_up_small_maps(ours)
    assert type(ours[0]) is MatmulConv2d
    first = torch.randn(2, 5, *size, dtype=torch.double, requires_grad=True)
    second = first.detach().clone().requires_grad_()
    outputs, expected = ours(first), plain(second)
    weights = torch.randn_like(expected)
    (outputs * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(first.grad, second.grad)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(ours[0].get_parameter(name).grad, parameter.grad)


def test_small_maps_are_matrix_products_and_large_ones_are_not():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    speed_up_small_maps(model)
    for size, product in (((4, 4), True), ((5, 4), False)):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            model(torch.randn(1, 3, *size))
        called = {event.key for event in profile.key_averages()}
        assert ("aten::linear" in called) == product
        assert ("aten::conv2d" in called) != product


def test_convolutions_of_other_kinds_and_names_of_weights_stay():
    kept = [
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ]
    speed_up_small_maps(nn.Sequential(*kept))
    assert {type(layer) for layer in kept} == {nn.Conv2d}
    model = timm.create_model("resnet18", num_classes=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    speed_up_small_maps(model)
    torch.testing.assert_close(dict(model.state_dict()), before)


def test_an_exported_model_has_plain_convolutions():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    speed_up_small_maps(model)
    graph = torch.export.export(model.eval(), (torch.randn(1, 3, 2, 2),)).graph
    assert any("conv2d" in str(node.target) for node in graph.nodes)
