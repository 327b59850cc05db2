# libtorch from a torch wheel, as the imported target `thinwire::torch`.
#
# Linking the libraries by path with an rpath is one code path for CPU and CUDA wheels and needs no
# nvcc at configure time, unlike find_package(Torch). Only the CPU libraries are linked: they load
# without a driver and start in a fraction of the time.
#
#   THINWIRE_TORCH           the folder of the Python package `torch` (it holds include/ and lib/)
#   THINWIRE_TORCH_PROBLEM   afterwards: why that libtorch cannot be used; empty if it can

# libtorch promises no binary interface from one minor version to the next.
set(_wanted 2.11)

# Sets `version` to that of the libtorch in `folder`. Its headers are what programs are compiled with.
function(_thinwire_torch_version folder version)
  set(found "of no version that it tells")
  if(EXISTS "${folder}/include/torch/headeronly/version.h")
    set(header "${folder}/include/torch/headeronly/version.h")
  else()
    set(header "${folder}/include/torch/csrc/api/include/torch/version.h")
  endif()
  if(EXISTS "${header}")
    file(STRINGS "${header}" lines REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
    string(REGEX MATCHALL "[0-9]+" numbers "${lines}")
    list(JOIN numbers "." found)
  elseif(EXISTS "${folder}/version.py")
    file(STRINGS "${folder}/version.py" lines REGEX "^__version__")
    string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" found "${lines}")
  endif()
  set(${version} "${found}" PARENT_SCOPE)
endfunction()

set(THINWIRE_TORCH_PROBLEM "")
_thinwire_torch_version("${THINWIRE_TORCH}" _version)
if(NOT EXISTS "${THINWIRE_TORCH}/lib/libtorch_cpu.so")
  set(THINWIRE_TORCH_PROBLEM "libtorch not found in '${THINWIRE_TORCH}'")
elseif(NOT _version MATCHES "^${_wanted}\\.")
  set(THINWIRE_TORCH_PROBLEM
      "libtorch in '${THINWIRE_TORCH}' is ${_version}, but thinwire needs ${_wanted}")
endif()
if(THINWIRE_TORCH_PROBLEM)
  string(APPEND THINWIRE_TORCH_PROBLEM
         "; pass -DTHINWIRE_TORCH=<site-packages>/torch of a torch ${_wanted} wheel")
elseif(NOT TARGET thinwire::torch)
  get_filename_component(THINWIRE_TORCH "${THINWIRE_TORCH}" REALPATH)
  set(THINWIRE_TORCH "${THINWIRE_TORCH}" CACHE PATH "folder of the Python package torch" FORCE)

  # The CUDA wheel's CPU library needs libcudart and libcupti: from the toolkit, or from the wheels
  # beside torch (then torch's own rpath finds them).
  set(_rpath "${THINWIRE_TORCH}/lib")
  foreach(_folder /usr/local/cuda/lib64 /usr/local/cuda/extras/CUPTI/lib64)
    if(EXISTS "${_folder}")
      list(APPEND _rpath "${_folder}")
    endif()
  endforeach()
  file(GLOB _wheels "${THINWIRE_TORCH}/../nvidia/cu13/lib" "${THINWIRE_TORCH}/../nvidia/*/lib")
  list(APPEND _rpath ${_wheels})
  list(REMOVE_DUPLICATES _rpath)

  add_library(thinwire::torch INTERFACE IMPORTED GLOBAL)
  set_target_properties(thinwire::torch PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES
      "${THINWIRE_TORCH}/include;${THINWIRE_TORCH}/include/torch/csrc/api/include"
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES
      "${THINWIRE_TORCH}/include;${THINWIRE_TORCH}/include/torch/csrc/api/include"
    INTERFACE_LINK_LIBRARIES
      "${THINWIRE_TORCH}/lib/libtorch_cpu.so;${THINWIRE_TORCH}/lib/libc10.so")
  # RPATH rather than RUNPATH: it also serves what libtorch itself loads.
  set(_flags "-Wl,--disable-new-dtags")
  foreach(_folder IN LISTS _rpath)
    list(APPEND _flags "-Wl,-rpath,${_folder}" "-Wl,-rpath-link,${_folder}")
  endforeach()
  set_property(TARGET thinwire::torch PROPERTY INTERFACE_LINK_OPTIONS "${_flags}")
  set(THINWIRE_TORCH_LINK_FLAGS "${_flags}")
endif()
