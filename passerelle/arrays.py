"""Type aliases of NumPy arrays by dtype; shapes stand in the suffixes of names."""

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
FloatArray = npt.NDArray[np.floating]
Int64Array = npt.NDArray[np.int64]
IntArray = npt.NDArray[np.integer]
