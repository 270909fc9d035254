"""The networks of recognisers: encoders, CTC, Transducers, and those of torchaudio."""
