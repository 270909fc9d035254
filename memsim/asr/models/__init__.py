"""Networks of recognisers: encoders, CTC, Transducers, and networks of torchaudio."""
