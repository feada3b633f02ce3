"""The public traces: where each lies, whose it is, and how its file is known.

Owns the table. A trace is the property of those who published it, under their licence; nothing of it is part
of this project.

Invariant: a sha256 stands here only if it was computed from a file known to be the published one; where it is
None the first download records it beside the file, and later ones are held to that.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

MOONCAKE = "https://raw.githubusercontent.com/kvcache-ai/Mooncake/main/FAST25-release/traces/"
BAILIAN = (
    "https://media.githubusercontent.com/media/alibaba-edu/qwen-bailian-usagetraces-anon/refs/heads/main/"
)
AZURE_2023 = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/master/data/"
AZURE_2024 = "https://azurepublicdatasettraces.blob.core.windows.net/azurellminfererencetrace/"
BURSTGPT = "https://github.com/HPMLL/BurstGPT/releases/download/v1.1/"


@dataclass(frozen=True, slots=True)
class PublicTrace:
    """A file somebody else publishes.

    Attributes:
        format: one of `reading.FORMATS`, by which a file that is something else is found out.
        cite: what its publishers ask users to cite, or what it is from.
        num_bytes: None where it was never seen whole.
    """

    name: str
    url: str
    format: str
    licence: str
    cite: str
    sha256: str | None = None
    num_bytes: int | None = None

    @property
    def file_name(self) -> str:
        return urlsplit(self.url).path.rpartition("/")[2]


def _mooncake(name: str, sha256: str | None = None, num_bytes: int | None = None) -> PublicTrace:
    return PublicTrace(
        name=f"mooncake-{name}",
        url=f"{MOONCAKE}{name}_trace.jsonl",
        format="mooncake",
        licence="Apache-2.0",
        cite="Qin et al., Mooncake, FAST 2025",
        sha256=sha256,
        num_bytes=num_bytes,
    )


def _bailian(letter: str) -> PublicTrace:
    return PublicTrace(
        name=f"bailian-{letter.lower()}",
        url=f"{BAILIAN}qwen_trace{letter}_blksz_16.jsonl",
        format="bailian",
        licence="see its repository",
        cite="Wang et al., KVCache Cache in the Wild, ATC 2025",
    )


def _azure(name: str, url: str, cite: str, sha256: str | None, num_bytes: int | None) -> PublicTrace:
    return PublicTrace(
        name=f"azure-{name}",
        url=url,
        format="azure",
        licence="CC-BY-4.0",
        cite=cite,
        sha256=sha256,
        num_bytes=num_bytes,
    )


def _burstgpt(name: str, file_name: str) -> PublicTrace:
    return PublicTrace(
        name=f"burstgpt-{name}",
        url=f"{BURSTGPT}{file_name}",
        format="burstgpt",
        licence="CC-BY-4.0",
        cite="Wang et al., BurstGPT, 2024",
    )


_SPLITWISE = "Patel et al., Splitwise, ISCA 2024"
_DYNAMO_LLM = "Stojkovic et al., DynamoLLM, HPCA 2025"

PUBLIC_TRACES: dict[str, PublicTrace] = {
    trace.name: trace
    for trace in (
        _mooncake(
            "conversation", "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df", 3_029_533
        ),
        _mooncake("toolagent"),
        _mooncake("synthetic"),
        _bailian("A"),
        _bailian("B"),
        _azure(
            "2023-code",
            f"{AZURE_2023}AzureLLMInferenceTrace_code.csv",
            _SPLITWISE,
            "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
            320_117,
        ),
        _azure(
            "2023-conv",
            f"{AZURE_2023}AzureLLMInferenceTrace_conv.csv",
            _SPLITWISE,
            "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
            719_188,
        ),
        _azure("2024-code", f"{AZURE_2024}AzureLLMInferenceTrace_code_1week.csv", _DYNAMO_LLM, None, None),
        _azure("2024-conv", f"{AZURE_2024}AzureLLMInferenceTrace_conv_1week.csv", _DYNAMO_LLM, None, None),
        _burstgpt("1", "BurstGPT_1.csv"),
        _burstgpt("1-without-fails", "BurstGPT_without_fails_1.csv"),
        _burstgpt("2", "BurstGPT_2.csv"),
        _burstgpt("2-without-fails", "BurstGPT_without_fails_2.csv"),
    )
}
