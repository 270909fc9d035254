"""A checkpoint and the network that its tensors belong to, which is built once however many steps need it."""

from __future__ import annotations

from functools import cached_property

from memsim.asr.architectures import ARCHITECTURES
from memsim.asr.hugging_face.folder import is_in_a_folder
from memsim.asr.input_rates import sample_utterance
from memsim.asr.recogniser import Recogniser, load_weights, skeleton
from memsim.errors import naming
from memsim.networks.hugging_face import network_beside, network_of_recogniser, sample_batch
from memsim.networks.stored_network import StoredNetwork
from memsim.nn.quantisers import quantiser_tensors, restore_quantisers
from memsim.nn.sample_run import SampleRun
from memsim.storage.checkpoint import Checkpoint


class OpenedNetwork:
    """A checkpoint with its network, which is built when a step first needs it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    @property
    def is_recogniser(self) -> bool:
        """Whether the checkpoint names an architecture that memsim knows, so that it can be run."""
        return self.checkpoint.metadata.get("architecture") in ARCHITECTURES

    @property
    def _is_in_a_folder(self) -> bool:
        """Whether it is a recogniser in a folder of Hugging Face's, whose tensors may have other names than its own."""
        return self.is_recogniser and is_in_a_folder(self.checkpoint)

    @property
    def stored(self) -> StoredNetwork | None:
        """The network as a map from its tensors to those of the file; None where nothing says which network it is."""
        return self._found[0]

    @property
    def remark(self) -> str | None:
        """The line that tells users how the network was found, or why it was not; None where there is nothing to say.

        A `config.json` of Hugging Face's beside the file is the case that has one.
        """
        return self._found[1]

    @cached_property
    def recogniser(self) -> Recogniser:
        """The recogniser with its weights. Raises InputError where the file does not describe one or does not fit it.

        Filling in the weights does not change `stored`.
        """
        stored = self.stored if self._is_in_a_folder else None
        return load_weights(self._skeleton, self.checkpoint, None if stored is None else stored.state)

    @property
    def sample(self) -> SampleRun | None:
        """The run in which the work of the network is counted; None where memsim cannot run it."""
        if self.is_recogniser:
            return sample_utterance(self.recogniser)
        return None if self.stored is None else sample_batch(self.stored.model)

    @cached_property
    def _skeleton(self) -> Recogniser:
        return skeleton(self.checkpoint)

    @cached_property
    def _found(self) -> tuple[StoredNetwork | None, str | None]:
        checkpoint = self.checkpoint
        network: StoredNetwork | None
        if self._is_in_a_folder:
            network, remark = network_of_recogniser(checkpoint, self._skeleton.model), None
        elif self.is_recogniser:
            network, remark = StoredNetwork(checkpoint, self._skeleton.model), None
        else:
            network, remark = network_beside(checkpoint)
        if network is not None and "recogniser" not in self.__dict__:  # whose quantisers hold values by now
            with naming(checkpoint.path):
                restore_quantisers(network.model, checkpoint.tensors(quantiser_tensors(checkpoint.names)))
        return network, remark
