# The wheels' CMake targets name include folders of the machine that built them. CMake refuses folders that are not
# there, so they are dropped once every package has been found. CMakeLists.txt itself stays as colcon wants it.
function(drop_absent_includes)
  # The bindings' NumPy headers are looked for again here: by now the targets exist that the wheels' config hides.
  find_package(Python3 QUIET COMPONENTS Interpreter Development.Module NumPy)
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    foreach(property INTERFACE_INCLUDE_DIRECTORIES INTERFACE_SYSTEM_INCLUDE_DIRECTORIES)
      get_target_property(folders ${target} ${property})
      if(NOT folders)
        continue()
      endif()
      set(present "")
      foreach(folder IN LISTS folders)
        # Generator expressions and relative paths are left alone.
        if(NOT folder MATCHES "^/" OR EXISTS "${folder}")
          list(APPEND present "${folder}")
        endif()
      endforeach()
      set_property(TARGET ${target} PROPERTY ${property} "${present}")
    endforeach()
  endforeach()
endfunction()
cmake_language(DEFER CALL drop_absent_includes)
